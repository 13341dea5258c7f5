/** The rotary embedding kernel, in place, from a table of cos and sin, and the function that records it. */
import { defineKernel, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { ArgumentError } from "../../tensor/index.ts";
import type { Recorder } from "../recorder.ts";
import { type RopeSpec, validateRopeSpec } from "./contract.ts";

type RopeKernelSpec = Pick<RopeSpec, "headDim" | "rotaryDim" | "style">;

/** Kernel part: rotates the channels at address `x` by the angles of one row of a RopeTable. */
export function rotateRow(
  k: KernelBuilder,
  { rotaryDim, style }: Pick<RopeSpec, "rotaryDim" | "style">,
  x: Value<"i32">,
  cosRow: Value<"i32">,
): void {
  const half = rotaryDim / 2;
  const vectorHalf = style === "halves" ? half - (half % k.lanes) : 0;
  if (vectorHalf > 0) {
    k.for(0, vectorHalf * 4, k.lanes * 4, (at) => {
      const pair = k.let(x.add(at));
      const angle = k.let(cosRow.add(at));
      const a = k.let(k.load("f32v", pair));
      const b = k.let(k.load("f32v", pair, half * 4));
      const cos = k.let(k.load("f32v", angle));
      const sin = k.let(k.load("f32v", angle, half * 4));
      k.store("f32v", pair, a.mul(cos).sub(b.mul(sin)));
      k.store("f32v", pair, b.mul(cos).add(a.mul(sin)), half * 4);
    });
  }
  if (vectorHalf === half) return;
  const step = style === "halves" ? 4 : 8;
  const partner = style === "halves" ? half * 4 : 4;
  k.for(vectorHalf, half, 1, (i) => {
    const pair = k.let(x.add(i.mul(step)));
    const angle = k.let(cosRow.add(i.shl(2)));
    const a = k.let(k.load("f32", pair));
    const b = k.let(k.load("f32", pair, partner));
    const cos = k.let(k.load("f32", angle));
    const sin = k.let(k.load("f32", angle, half * 4));
    k.store("f32", pair, a.mul(cos).sub(b.mul(sin)));
    k.store("f32", pair, b.mul(cos).add(a.mul(sin)), partner);
  });
}

/** One task is one row of all its heads: cos and sin of its position stay in the first-level cache. */
export const ropeKernel = defineKernel({
  name: "rope",
  params: { x: "pointer", positions: "pointer", table: "pointer", rowStride: "i32", numHeads: "i32" },
  build(k, { headDim, rotaryDim, style }: RopeKernelSpec, p) {
    k.forTasks((row) => {
      const cosRow = k.let(p.table.add(k.load("i32", p.positions.add(row.shl(2))).mul(rotaryDim * 4)));
      const xRow = k.let(p.x.add(row.mul(p.rowStride).shl(2)));
      k.for(0, p.numHeads, 1, (head) =>
        rotateRow(k, { rotaryDim, style }, k.let(xRow.add(head.mul(headDim * 4))), cosRow),
      );
    });
  },
});

/**
 * Device addresses: x [numRows, numHeads, headDim] f32, positions [numRows] i32, table as RopeTable lays it out. Queries
 * and keys that lie in one row are one call of all their heads.
 */
export interface RopeArgs {
  readonly x: number;
  readonly positions: number;
  /** Rows of every position that occurs; a position beyond them reads foreign memory. */
  readonly table: number;
  readonly numRows: number;
  readonly numHeads: number;
  /** Elements between the rows of x; numHeads * headDim by default. */
  readonly rowStride?: number;
  /** The next launch need not wait for this one. */
  readonly overlap?: boolean;
}

/** Records the rotation of x in place. Throws ArgumentError naming the argument that does not fit. */
export function recordRope({ device, commands }: Recorder, spec: RopeSpec, args: RopeArgs): void {
  validateRopeSpec(spec);
  const { numRows, numHeads, rowStride = numHeads * spec.headDim } = args;
  if (!Number.isInteger(rowStride) || rowStride < numHeads * spec.headDim) {
    throw new ArgumentError(
      `rowStride must be at least numHeads * headDim = ${numHeads * spec.headDim}, got ${rowStride}`,
    );
  }
  if (numRows === 0) return;
  const { headDim, rotaryDim, style } = spec;
  commands.launch(
    device.compile(ropeKernel, { headDim, rotaryDim, style }),
    { x: args.x, positions: args.positions, table: args.table, rowStride, numHeads },
    numRows,
    { grain: Math.max(1, Math.floor(2048 / (numHeads * rotaryDim))), overlap: args.overlap },
  );
}
