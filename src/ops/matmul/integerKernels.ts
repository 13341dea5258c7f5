/**
 * Matrix products in integer arithmetic. With few tokens the weights are unpacked in registers (`integerDirect`); with many, a task
 * first expands its panels into scratch memory and then goes through its tokens (`integerExpanded`). Both do the same operations in
 * the same order for each output, so they agree bit for bit.
 */

import { defineKernel, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { activationBlock, activationRowBytes, metaStart } from "./activations.ts";
import { fieldReader, forBlocks, formatOf, numSubBlocks, type OpenBlock, type QuantizedFormat } from "./formats.ts";
import {
  forTasks,
  forTokenTiles,
  type MatmulParams,
  type MatmulSpec,
  matmulParams,
  storeTile,
  zeroSums,
} from "./kernelParts.ts";
import { panelBlockBytes, panelBlockStride, panelStart } from "./panels.ts";
import { accumulateSubBlock, type TokenBlock, type WeightSource } from "./tile.ts";

/** Where the activations of a token begin: its integers, and its blocks' four f32. */
interface TokenRow {
  readonly row: Value<"i32">;
  readonly metas: Value<"i32">;
}

function tokenRows(k: KernelBuilder, spec: MatmulSpec, p: MatmulParams, tokens: readonly Value<"i32">[]): TokenRow[] {
  const arithmetic = integerArithmetic(spec);
  return tokens.map((token) => {
    const row = k.let(p.activations.add(token.mul(activationRowBytes(arithmetic, spec.columns))));
    return { row, metas: k.let(row.add(metaStart(arithmetic, spec.columns))) };
  });
}
const integerArithmetic = (spec: MatmulSpec): "i8" | "i16" => {
  if (spec.arithmetic === "f32") throw new Error("an integer kernel needs integer arithmetic");
  return spec.arithmetic;
};
const integerSize = (spec: MatmulSpec): number => (spec.arithmetic === "i8" ? 1 : 2);

/** The tokens' activations of one block. */
function tokenBlocks(
  k: KernelBuilder,
  spec: MatmulSpec,
  rows: readonly TokenRow[],
  column: Value<"i32">,
): TokenBlock[] {
  return rows.map(({ row, metas }) => ({
    integers: k.let(row.add(column.mul(activationBlock * integerSize(spec)))),
    meta: k.let(metas.add(column.mul(16))),
  }));
}

/** Few tokens: weights are unpacked in registers, once for the tile's tokens. */
export const integerDirect = defineKernel({
  name: "matmulIntegerDirect",
  params: matmulParams,
  build(k, spec: MatmulSpec, p) {
    const format = formatOf(spec.type);
    const subBlocks = numSubBlocks(format);
    const blockBytes = panelBlockBytes(spec.type, k.lanes);
    const stride = panelBlockStride(spec.type, k.lanes);
    forTasks(k, spec, p, (panel, from, to) => {
      const start = panelStart(k, spec, p.weights, panel);
      forTokenTiles(k, spec, from, to, (tokens, first) => {
        const sums = zeroSums(k, spec);
        const rows = tokenRows(k, spec, p, tokens);
        k.for(0, spec.columns / (subBlocks * activationBlock), 1, (block) => {
          const blocks = sums.map((_, index) => {
            const address = k.let(start.add(block.mul(stride)).add(index * blockBytes));
            return format.open(k, fieldReader(k, format, address));
          });
          for (let sub = 0; sub < subBlocks; sub++) {
            const source = registerSource(k, format, blocks, sub);
            const column = k.let(block.mul(subBlocks).add(sub));
            const blocksOfTokens = tokenBlocks(k, spec, rows, column);
            accumulateSubBlock(k, format, integerArithmetic(spec), source, blocksOfTokens, sums);
          }
        });
        storeTile(k, spec, p, panel, tokens, first, to, sums);
      });
    });
  },
});

function registerSource(
  k: KernelBuilder,
  format: QuantizedFormat,
  blocks: readonly OpenBlock[],
  sub: number,
): WeightSource {
  const groups = activationBlock / format.groupSize;
  return {
    bytes: (panel, unit) => blocks[panel].bytes(sub, unit),
    halves: (panel, unit) => widen(k, blocks[panel], sub, unit),
    scale: (panel, group) => blocks[panel].scale(sub * groups + group),
    minimum: (panel, group) => blocks[panel].minimum(sub * groups + group),
  };
}

function widen(k: KernelBuilder, block: OpenBlock, sub: number, unit: number): readonly [Value<"i16v">, Value<"i16v">] {
  const halves = block.halves?.(sub, unit);
  if (halves !== undefined) return halves;
  const bytes = k.let(block.bytes(sub, unit));
  return [bytes.widenLow(), bytes.widenHigh()];
}

/** Offsets in an expanded sub-block of one panel, which begins with integers; scales and minima are f32 vectors. */
interface ExpandedLayout {
  readonly scales: number;
  readonly minima: number;
  readonly numBytes: number;
}

function expandedLayout(format: QuantizedFormat, arithmetic: "i8" | "i16", lanes: number): ExpandedLayout {
  const vector = lanes * 4;
  const scales = vector * (arithmetic === "i8" ? 8 : 16);
  const groups = activationBlock / format.groupSize;
  const minima = scales + groups * vector;
  return { scales, minima, numBytes: minima + (format.hasMinimum ? groups * vector : 0) };
}

/** Many tokens: the panels are expanded to integers and f32 scales in scratch memory, then met by all tokens of the task. */
export const integerExpanded = defineKernel({
  name: "matmulIntegerExpanded",
  params: matmulParams,
  scratchBytes: (spec: MatmulSpec, target) =>
    (spec.columns / activationBlock) *
    spec.panels *
    expandedLayout(formatOf(spec.type), integerArithmetic(spec), target.lanes).numBytes,
  build(k, spec: MatmulSpec, p) {
    const format = formatOf(spec.type);
    const arithmetic = integerArithmetic(spec);
    const layout = expandedLayout(format, arithmetic, k.lanes);
    const stepBytes = layout.numBytes * spec.panels;
    forTasks(k, spec, p, (panel, from, to) => {
      for (let index = 0; index < spec.panels; index++)
        expandIntegers(k, spec, p, k.let(panel.add(index)), index * layout.numBytes, stepBytes);
      forTokenTiles(k, spec, from, to, (tokens, first) => {
        const sums = zeroSums(k, spec);
        const rows = tokenRows(k, spec, p, tokens);
        k.for(0, spec.columns / activationBlock, 1, (column) => {
          const expanded = k.let(k.scratch.add(column.mul(stepBytes)));
          const source = expandedSource(k, expanded, layout);
          accumulateSubBlock(k, format, arithmetic, source, tokenBlocks(k, spec, rows, column), sums);
        });
        storeTile(k, spec, p, panel, tokens, first, to, sums);
      });
    });
  },
});

function expandedSource(k: KernelBuilder, address: Value<"i32">, layout: ExpandedLayout): WeightSource {
  const vector = k.lanes * 4;
  return {
    bytes: (panel, unit) => k.load("i8v", address, panel * layout.numBytes + unit * vector),
    halves: (panel, unit) => [
      k.load("i16v", address, panel * layout.numBytes + unit * 2 * vector),
      k.load("i16v", address, panel * layout.numBytes + (unit * 2 + 1) * vector),
    ],
    scale: (panel, group) => k.load("f32v", address, panel * layout.numBytes + layout.scales + group * vector),
    minimum: (panel, group) => k.load("f32v", address, panel * layout.numBytes + layout.minima + group * vector),
  };
}

function expandIntegers(
  k: KernelBuilder,
  spec: MatmulSpec,
  p: MatmulParams,
  panel: Value<"i32">,
  offset: number,
  stepBytes: number,
): void {
  const format = formatOf(spec.type);
  const arithmetic = integerArithmetic(spec);
  const layout = expandedLayout(format, arithmetic, k.lanes);
  const vector = k.lanes * 4;
  const subBlocks = numSubBlocks(format);
  const groups = activationBlock / format.groupSize;
  const start = panelStart(k, spec, p.weights, panel);
  forBlocks(k, spec.type, spec.columns, start, (open, block) => {
    for (let sub = 0; sub < subBlocks; sub++) {
      const target = k.let(k.scratch.add(block.mul(subBlocks).add(sub).mul(stepBytes)).add(offset));
      for (const unit of format.unitOrder) {
        const bytes = k.let(open.bytes(sub, unit));
        if (arithmetic === "i8") k.store("i8v", target, bytes, unit * vector);
        else {
          k.store("i16v", target, bytes.widenLow(), unit * 2 * vector);
          k.store("i16v", target, bytes.widenHigh(), (unit * 2 + 1) * vector);
        }
      }
      for (let group = 0; group < groups; group++) {
        k.store("f32v", target, open.scale(sub * groups + group), layout.scales + group * vector);
        if (format.hasMinimum)
          k.store("f32v", target, open.minimum(sub * groups + group), layout.minima + group * vector);
      }
    }
  });
}
