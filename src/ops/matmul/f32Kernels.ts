/**
 * Matrix products in f32: a task expands its panels to f32 in scratch memory (weights stored as f32 are read where they are) and then
 * goes through its tokens. Also the expansion itself, which the embedding uses.
 */

import { bf16ToF32, defineKernel, f16ToF32, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { type WeightType, weightBlock } from "../../tensor/index.ts";
import { forBlocks, numSubBlocks, type OpenBlock, type QuantizedFormat, quantizedFormat } from "./formats.ts";
import { forTasks, forTokenTiles, type MatmulSpec, matmulParams, storeTile, zeroSums } from "./kernelParts.ts";
import { panelBlockStride, panelStart, panelsPerGroup } from "./panels.ts";

/** The matrix product in f32, for weights of every type. */
export const f32Expanded = defineKernel({
  name: "matmulF32",
  params: matmulParams,
  scratchBytes: (spec: MatmulSpec, target) => (spec.type === "F32" ? 0 : spec.columns * spec.panels * target.lanes * 4),
  build(k, spec: MatmulSpec, p) {
    const vector = k.lanes * 4;
    // Vectors of a column lie side by side, those of the tile's panels in scratch memory, those of a whole group where they are stored.
    const columnBytes = vector * (spec.type === "F32" ? panelsPerGroup : spec.panels);
    forTasks(k, spec, p, (panel, from, to) => {
      const isStoredExpanded = spec.type === "F32";
      if (!isStoredExpanded) {
        for (let index = 0; index < spec.panels; index++) {
          const source = panelStart(k, spec, p.weights, k.let(panel.add(index)));
          expandPanel(k, spec, source, { pointer: k.let(k.scratch.add(index * vector)), stride: columnBytes });
        }
      }
      const start = isStoredExpanded ? panelStart(k, spec, p.weights, panel) : k.scratch;
      forTokenTiles(k, spec, from, to, (tokens, first) => {
        const sums = zeroSums(k, spec);
        const rows = tokens.map((token) => k.let(p.activations.add(token.mul(spec.columns * 4))));
        const step = (weights: Value<"i32">, x: readonly Value<"i32">[], column: number): void => {
          const loaded = sums.map((_, index) => k.let(k.load("f32v", weights, column * columnBytes + index * vector)));
          x.forEach((address, t) => {
            const activation = k.let(k.loadSplatF32(address, column * 4));
            sums.forEach((row, index) => {
              row[t].set(loaded[index].fma(activation, row[t].value));
            });
          });
        };
        const unrolled = spec.columns - (spec.columns % 4);
        k.for(0, unrolled, 4, (column) => {
          const weights = k.let(start.add(column.mul(columnBytes)));
          const x = rows.map((row) => k.let(row.add(column.mul(4))));
          for (let c = 0; c < 4; c++) step(weights, x, c);
        });
        for (let c = unrolled; c < spec.columns; c++) step(start, rows, c);
        storeTile(k, spec, p, panel, tokens, first, to, sums);
      });
    });
  },
});

/** A panel at `source` as f32 vectors, one for each column, `target.stride` bytes apart. */
export function expandPanel(
  k: KernelBuilder,
  { type, columns }: { readonly type: WeightType; readonly columns: number },
  source: Value<"i32">,
  target: { readonly pointer: Value<"i32">; readonly stride: number },
): void {
  const format = quantizedFormat(type);
  if (format !== undefined) {
    forBlocks(k, type, columns, source, (open, block) => {
      const out = k.let(target.pointer.add(block.mul(weightBlock(type).size * target.stride)));
      for (let sub = 0; sub < numSubBlocks(format); sub++) storeSubBlock(k, format, open, sub, out, target.stride);
    });
    return;
  }
  k.for(0, columns, 1, (column) => {
    const out = k.let(target.pointer.add(column.mul(target.stride)));
    const at = source.add(column.mul(panelBlockStride(type, k.lanes)));
    if (type === "F32") k.store("f32v", out, k.load("f32v", at));
    else {
      const half = k.load("u16 to i32v", at);
      k.store("f32v", out, type === "F16" ? f16ToF32(k, half) : bf16ToF32(half));
    }
  });
}

/** The 32 weights of a sub-block as f32 vectors, in order. */
function storeSubBlock(
  k: KernelBuilder,
  format: QuantizedFormat,
  open: OpenBlock,
  sub: number,
  target: Value<"i32">,
  stride: number,
): void {
  const groups = 32 / format.groupSize;
  const scales = Array.from({ length: groups }, (_, group) => k.let(open.scale(sub * groups + group)));
  const minima = scales.map((_, group) => (format.hasMinimum ? k.let(open.minimum(sub * groups + group)) : undefined));
  for (const unit of format.unitOrder) {
    const group = Math.floor((unit * 4) / format.groupSize);
    const four = k.let(open.bytes(sub, unit).as("i32v"));
    for (let byte = 0; byte < 4; byte++) {
      const integer = four
        .shl(24 - 8 * byte)
        .shr(24)
        .sub(format.zero);
      let value = integer.toF32().mul(scales[group]);
      const minimum = minima[group];
      if (minimum !== undefined) value = value.sub(minimum);
      k.store("f32v", target, value, (sub * 32 + unit * 4 + byte) * stride);
    }
  }
}
