/** Golden cases of Palu's conversion: low-rank factors of a weight, and the search for ranks. Both run on the host, whatever the target. */
import { addGram, type Matrix, matrixFrom, multiply, zeros } from "../src/convert/linearAlgebra/index.ts";
import { decompose, type RankSearch, searchRanks, whiten } from "../src/convert/palu/index.ts";
import type { GoldenCase } from "./case.ts";

type Outputs = Record<string, ArrayLike<number>>;

/** Columns of both inputs are scaled, so that neither has equal singular values: the weight's fall, those of the calibration rise. */
export async function runPaluDecompose(golden: GoldenCase): Promise<Outputs> {
  const weight = scaledColumns(golden, "base", -golden.requiredNumber("decay"));
  const { ranks, whiten: whitened } = golden.file.params;
  if (!isNumbers(ranks)) throw new Error("params.ranks must be a list of numbers");
  const whitening = whitened ? whiten(moments(scaledColumns(golden, "calib", 0.03))) : undefined;
  const groups = decompose(weight, { numGroups: golden.requiredNumber("num_groups"), ranks, whitening });
  return {
    product: groups.flatMap(({ up, down }) => [...multiply(up, down).values]),
    singular_values: groups.flatMap(({ singularValues }) => [...singularValues]),
    error_fro: groups.map(({ error }) => error),
    error_whitened: groups.map(({ whitenedError }) => whitenedError),
  };
}

function scaledColumns(golden: GoldenCase, name: string, growth: number): Matrix {
  const [rows, columns] = golden.shape(name);
  const scaled = Float64Array.from(golden.input(name), (value, i) => value * Math.exp(growth * (i % columns)));
  return matrixFrom(rows, columns, scaled);
}

function moments(x: Matrix): Matrix {
  const sum = zeros(x.columns, x.columns);
  addGram(sum, x);
  return sum;
}

export async function runPaluRankSearch(golden: GoldenCase): Promise<Outputs> {
  const found = searchRanks(rankSearch(golden));
  for (const [name, value] of [["total_rank", found.totalRank] as const, ["rank_sum", found.rankSum] as const]) {
    if (value !== golden.requiredNumber(name)) throw new Error(`params.${name} is not the ${value} that was found`);
  }
  return { ranks_before_rounding: found.beforeRounding.flat(), ranks: found.ranks.flat() };
}

function rankSearch(golden: GoldenCase): RankSearch {
  const budget = {
    numKvHeads: golden.requiredNumber("num_kv_heads"),
    headDim: golden.requiredNumber("head_dim"),
    headGroupSize: golden.requiredNumber("head_group_size"),
    paramRatioTarget: golden.requiredNumber("param_ratio_target"),
    blockSize: golden.requiredNumber("block_size"),
  };
  const numModules = 2 * golden.requiredNumber("layers");
  const { method } = golden.file.params;
  if (method === "uniform") return { ...budget, method, numModules };
  const fisher = [...golden.input("fisher")];
  if (method === "fisher_uniform") return { ...budget, method, fisher };
  if (method !== "fisher") throw new Error(`method ${JSON.stringify(method)} is unknown`);
  const groups = fisher.length / numModules;
  const modules = Array.from({ length: numModules }, (_, m) => fisher.slice(m * groups, (m + 1) * groups));
  return { ...budget, method, fisher: modules };
}

function isNumbers(value: unknown): value is readonly number[] {
  return Array.isArray(value) && value.every((item) => typeof item === "number");
}
