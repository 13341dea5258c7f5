/**
 * The absorbing projection for many tokens: a panel of a few columns of a head's matrix is copied to scratch memory and meets all tokens
 * there, with the sums in registers. Each sum runs over the rows in order, as in the kernel for few tokens: the bits are the same.
 */
import { defineKernel, type KernelBuilder, type KernelTarget, type Value } from "../../kernels/index.ts";
import type { HeadProjectionSpec } from "./contract.ts";
import { forSlices, least, projectionParams } from "./slices.ts";

type Matrix = Pick<HeadProjectionSpec, "rows" | "columns">;
type Address = Value<"i32">;

/** Registers of a panel's row: with the sums of two tokens they are half of the registers there are. */
const PANEL_REGISTERS = 4;

const panelBytes = ({ lanes }: KernelTarget): number => PANEL_REGISTERS * lanes * 4;

/** One task is a slice of the columns of one head; `sliceLength` counts columns, in whole panels but for the last. */
export const absorbManyKernel = defineKernel({
  name: "absorbManyHeads",
  params: projectionParams,
  // The panel, and a row of sums that do not fill one.
  scratchBytes: ({ rows }: Matrix, target) => (rows + 1) * panelBytes(target),
  build(k, { rows, columns }: Matrix, p) {
    const rowBytes = panelBytes(k);
    const tail = (columns * 4) % rowBytes;
    forSlices(k, p, (head, slice) => {
      const first = k.let(slice.mul(p.sliceLength).shl(2));
      const end = least(k, first.add(p.sliceLength.shl(2)), k.i32(columns * 4));
      const weight = k.let(p.weight.add(head.mul(p.weightHeadBytes)));
      const x = k.let(p.x.add(head.mul(p.xHeadBytes)));
      const out = k.let(p.out.add(head.mul(p.outHeadBytes)));
      const panel = (column: Value<"i32">, numBytes: number): void => {
        packPanel(k, rows, columns, k.let(weight.add(column)), numBytes);
        const paired = k.let(p.numTokens.and(-2));
        const tokens = (token: Value<"i32">, numTokens: number): void => {
          const factors = Array.from({ length: numTokens }, (_, t) => k.let(x.add(token.add(t).mul(p.xRowBytes))));
          for (const [t, sums] of sumTile(k, rows, factors).entries()) {
            storeSums(k, k.let(out.add(token.add(t).mul(p.outRowBytes)).add(column)), sums, rows, numBytes);
          }
        };
        k.for(0, paired, 2, (token) => tokens(token, 2));
        k.if(paired.lt(p.numTokens), () => tokens(paired, 1));
      };
      k.for(first, least(k, end, k.i32(columns * 4 - tail)), rowBytes, (column) => panel(column, rowBytes));
      if (tail > 0) k.if(end.eq(columns * 4), () => panel(k.i32(columns * 4 - tail), tail));
    });
  },
});

/** Copies `numBytes` of every row, and zeros up to the panel's width. */
function packPanel(k: KernelBuilder, rows: number, columns: number, from: Address, numBytes: number): void {
  const rowBytes = panelBytes(k);
  k.for(0, rows, 1, (row) => {
    const source = k.let(from.add(row.mul(columns * 4)));
    const target = k.let(k.scratch.add(row.mul(rowBytes)));
    for (let at = 0; at < rowBytes; at += k.lanes * 4) {
      const isWhole = at + k.lanes * 4 <= numBytes;
      k.store("f32v", target, isWhole ? k.load("f32v", source, at) : k.all("f32v", 0), at);
      for (let i = at; !isWhole && i < numBytes; i += 4) k.store("f32", target, k.load("f32", source, i), i);
    }
  });
}

/** Sums over all rows of the panel for a few tokens, in registers. */
function sumTile(k: KernelBuilder, rows: number, factors: readonly Address[]): Value<"f32v">[][] {
  const rowBytes = panelBytes(k);
  const sums = factors.map(() => Array.from({ length: PANEL_REGISTERS }, () => k.var("f32v", 0)));
  const addRow = (panel: Address, x: readonly Address[], row: number): void => {
    const splats = x.map((address) => k.let(k.loadSplatF32(address, row * 4)));
    for (let i = 0; i < PANEL_REGISTERS; i++) {
      const weight = k.let(k.load("f32v", panel, row * rowBytes + i * k.lanes * 4));
      for (const [t, splat] of splats.entries()) sums[t][i].set(weight.fma(splat, sums[t][i].value));
    }
  };
  const unroll = [4, 2].find((steps) => rows % steps === 0) ?? 1;
  k.for(0, rows, unroll, (row) => {
    const panel = k.let(k.scratch.add(row.mul(rowBytes)));
    const x = factors.map((address) => k.let(address.add(row.shl(2))));
    for (let step = 0; step < unroll; step++) addRow(panel, x, step);
  });
  return sums.map((row) => row.map((sum) => sum.value));
}

/** Writes the first `numBytes` of the sums; what is no whole register goes through scratch memory behind the panel. */
function storeSums(
  k: KernelBuilder,
  to: Address,
  sums: readonly Value<"f32v">[],
  rows: number,
  numBytes: number,
): void {
  for (const [i, sum] of sums.entries()) {
    const at = i * k.lanes * 4;
    if (at + k.lanes * 4 <= numBytes) k.store("f32v", to, sum, at);
    else if (at < numBytes) {
      k.store("f32v", k.scratch, sum, rows * panelBytes(k));
      for (let j = at; j < numBytes; j += 4) {
        k.store("f32", to, k.load("f32", k.scratch, rows * panelBytes(k) + j - at), j);
      }
    }
  }
}
