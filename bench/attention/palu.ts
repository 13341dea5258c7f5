/** Palu's latents at three compressions against dense keys and values of the same model, keys rebuilt with rope and absorbed without. */

import { type LatentRanks, tokenBytes } from "../../src/ops/attention/index.ts";
import type { Cell } from "../result.ts";
import { AttentionLayers } from "./layers.ts";
import { repeat } from "./pages.ts";
import { heads, PaluLayers } from "./paluLayers.ts";
import { type Ground, type Part, type PartResult, rateCells, rateColumns } from "./rates.ts";
import { takeTurns } from "./turns.ts";

const contexts = [4096, 16384, 65536];
const perHeadContext = 16384;

/** Ranks of a layer with keys and values of one rank for each group of `headsPerGroup` heads. */
export function ranksOf(headsPerGroup: number, rankK: number, rankV: number): LatentRanks {
  const list = (rank: number): number[] => Array.from({ length: heads.numKvHeads / headsPerGroup }, () => rank);
  return { ranksK: list(rankK), ranksV: list(rankV) };
}

interface Compression {
  readonly name: string;
  readonly ranks: LatentRanks;
}

/** Groups of four heads and three times the rank for values, as in the paper's measurements: there rank 1024 and 3072 of a layer. */
export const grouped: readonly Compression[] = [128, 64, 32].map((rank) =>
  compression("groups of 4", ranksOf(4, rank, 3 * rank)),
);
/** Every head by itself: the sizes of the kernel for vLLM. */
const perHead: readonly Compression[] = [64, 32, 16].map((rank) => compression("each head", ranksOf(1, rank, rank)));

function compression(form: string, ranks: LatentRanks): Compression {
  const kept = [...ranks.ranksK, ...ranks.ranksV].reduce((sum, rank) => sum + rank, 0);
  const percent = 100 * (1 - kept / (2 * heads.numKvHeads * heads.headDim));
  const groupRanks = `${ranks.ranksK[0]} + ${ranks.ranksV[0]}`;
  return { name: `${percent} %, ${form}: ${groupRanks}`, ranks };
}

export const palu: Part = {
  name: "palu",
  async run({ limits }: Ground): Promise<PartResult> {
    const rows: Cell[][] = [];
    const slower: string[] = [];
    for (const kvLen of contexts) {
      const lengths = repeat(1, 1, kvLen);
      const dense = new AttentionLayers(limits.device, { ...heads, storage: "f16" }, lengths);
      const denseBytes = tokenBytes({ ...heads, storage: "f16", causal: true });
      const base = await takeTurns(limits, [dense]);
      rows.push([kvLen, "dense", "", denseBytes, 1, 1, ...rateCells(base.times[0], dense.cost, base.limits)]);
      for (const { name, ranks } of [...grouped, ...(kvLen === perHeadContext ? perHead : [])]) {
        const forms = (["rebuilt", "absorbed"] as const).map((keys) => {
          return { keys, layers: new PaluLayers(limits.device, { ranks, keys, storage: "f16", kvLen }) };
        });
        const contenders = [dense, ...forms.map(({ layers }) => layers)];
        const { times, limits: reached } = await takeTurns(limits, contenders);
        for (const [i, { keys, layers }] of forms.entries()) {
          const gain = times[0].median / times[i + 1].median;
          if (gain < 1) slower.push(`${kvLen} keys, ${name}, ${keys}`);
          const { tokenBytes: bytes, cost } = layers;
          const rates = rateCells(times[i + 1], cost, reached);
          rows.push([kvLen, name, keys, bytes, bytes / denseBytes, gain, ...rates]);
          layers.release();
        }
      }
      dense.release();
    }
    const columns = ["keys", "ranks of keys + values", "keys", "bytes a token", "of dense", "speed of dense"];
    return {
      tables: [
        { title: "Decode over Palu's latents, 32 heads of 128, f16", columns: [...columns, ...rateColumns], rows },
      ],
      remarks: [
        slower.length === 0
          ? "No form is slower than dense keys and values."
          : `Slower than dense keys and values of the same turns: ${slower.join("; ")}.`,
        "Rebuilt keys are rotated when they are loaded; absorbed ones are for models without rope, and include the product of the query with U_k. Outputs stay latents, for an output projection that was fused with U_v.",
      ],
    };
  },
};
