/**
 * What the matrix product kernels share: their spec and parameters, the division of a task into register tiles, and the end of a tile.
 *
 * out[t, r] = sum over c of weight[r, c] x[t, c] (+ bias[r]) (+ out[t, r]). A task is a group of panels and a block of tokens.
 */

import type { KernelBuilder, ParameterValues, Value, Variable } from "../../kernels/index.ts";
import type { WeightType } from "../../tensor/index.ts";
import type { Arithmetic } from "./activations.ts";

/** What a matrix product kernel is compiled for. */
export interface MatmulSpec {
  readonly type: WeightType;
  readonly arithmetic: Arithmetic;
  readonly columns: number;
  /** Tokens of a register tile. */
  readonly tokens: number;
  /** Panels of a register tile. */
  readonly panels: number;
  readonly hasBias: boolean;
  /** Adds to `out` instead of overwriting it. */
  readonly accumulate: boolean;
}

/** What it is told at each launch. */
export const matmulParams = {
  weights: "pointer",
  activations: "pointer",
  out: "pointer",
  bias: "pointer",
  /** Rows of the weight matrix; panels beyond are padding. */
  rows: "i32",
  numTokens: "i32",
  /** Elements from one token's outputs to the next. */
  outStride: "i32",
  /** Tasks are numbered panel group first: task = tokenBlock * numGroups + group. */
  numGroups: "i32",
  /** Tokens of a task; a multiple of the tile. */
  tokenBlock: "i32",
} as const;
/** The same as values of the kernel. */
export type MatmulParams = ParameterValues<typeof matmulParams>;

/** The f32 sums of a register tile: sums[panel][token]. */
export type TileSums = readonly (readonly Variable<"f32v">[])[];

/** sums[panel][token], zero. */
export function zeroSums(k: KernelBuilder, spec: MatmulSpec): TileSums {
  return Array.from({ length: spec.panels }, () => Array.from({ length: spec.tokens }, () => k.var("f32v", 0)));
}

/** Calls `body` for each task with its first panel and the tokens [from, to). */
export function forTasks(
  k: KernelBuilder,
  spec: MatmulSpec,
  p: MatmulParams,
  body: (panel: Value<"i32">, from: Value<"i32">, to: Value<"i32">) => void,
): void {
  k.forTasks((task) => {
    const block = k.let(task.divU(p.numGroups));
    const panel = k.let(task.sub(block.mul(p.numGroups)).mul(spec.panels));
    const from = k.let(block.mul(p.tokenBlock));
    const end = k.let(from.add(p.tokenBlock));
    body(panel, from, k.let(k.select(end.lt(p.numTokens), end, p.numTokens)));
  });
}

/** Goes through [from, to) in register tiles. A last, incomplete tile repeats its last token, and stores each only once. */
export function forTokenTiles(
  k: KernelBuilder,
  spec: MatmulSpec,
  from: Value<"i32">,
  to: Value<"i32">,
  body: (tokens: readonly Value<"i32">[], first: Value<"i32">) => void,
): void {
  if (spec.tokens === 1) {
    k.for(from, to, 1, (token) => body([token], token));
    return;
  }
  const last = k.let(to.sub(1));
  k.for(from, to, spec.tokens, (first) => {
    const tokens = Array.from({ length: spec.tokens }, (_, t) => {
      const token = k.let(first.add(t));
      return t === 0 ? token : k.let(k.select(token.lt(to), token, last));
    });
    body(tokens, first);
  });
}

/** Writes a tile, lane by lane where the matrix ends inside a panel. */
export function storeTile(
  k: KernelBuilder,
  spec: MatmulSpec,
  p: MatmulParams,
  panel: Value<"i32">,
  tokens: readonly Value<"i32">[],
  first: Value<"i32">,
  to: Value<"i32">,
  sums: TileSums,
): void {
  tokens.forEach((token, t) => {
    const storeToken = (): void => {
      sums.forEach((row, index) => {
        const firstRow = k.let(panel.add(index).mul(k.lanes));
        const address = k.let(p.out.add(token.mul(p.outStride).add(firstRow).mul(4)));
        const biasAddress = p.bias.add(firstRow.mul(4));
        k.if(
          p.rows.sub(firstRow).ge(k.lanes),
          () => {
            let value = row[t].value;
            if (spec.hasBias) value = value.add(k.load("f32v", biasAddress));
            if (spec.accumulate) value = value.add(k.load("f32v", address));
            k.store("f32v", address, value);
          },
          () => {
            for (let lane = 0; lane < k.lanes; lane++) {
              k.if(firstRow.add(lane).lt(p.rows), () => {
                let value = row[t].value.lane(lane);
                if (spec.hasBias) value = value.add(k.load("f32", biasAddress, lane * 4));
                if (spec.accumulate) value = value.add(k.load("f32", address, lane * 4));
                k.store("f32", address, value, lane * 4);
              });
            }
          },
        );
      });
    };
    if (t === 0) storeToken();
    else k.if(first.add(t).lt(to), storeToken);
  });
}
