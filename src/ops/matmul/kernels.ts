/**
 * The matrix product kernels: out[t, r] = sum over c of weight[r, c] x[t, c] (+ bias[r]) (+ out[t, r]).
 *
 * A task is a group of panels and a block of tokens. With few tokens the weights are unpacked in registers (`integerDirect`); with
 * many, a task first expands its panels into scratch memory and then goes through its tokens (`integerExpanded`, `f32Expanded`).
 * For one row and one token every kernel of the same arithmetic does the same operations in the same order.
 */

import { bf16ToF32, defineKernel, f16ToF32, type KernelBuilder, type ParameterValues, type Value } from "../../kernels/index.ts";
import { type WeightType, weightBlock } from "../../tensor/index.ts";
import { activationBlock, activationRowBytes, metaStart } from "./activations.ts";
import { fieldReader, numSubBlocks, type OpenBlock, type QuantizedFormat, quantizedFormat } from "./formats.ts";
import { accumulateSubBlock, type Sums, type TokenBlock, type WeightSource } from "./tile.ts";

export interface MatmulSpec {
  readonly type: WeightType;
  readonly arithmetic: "f32" | "i8" | "i16";
  readonly columns: number;
  /** Tokens of a register tile. */
  readonly tokens: number;
  /** Panels of a register tile. */
  readonly panels: number;
  readonly hasBias: boolean;
  /** Adds to `out` instead of overwriting it. */
  readonly accumulate: boolean;
}

const params = {
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
type Params = ParameterValues<typeof params>;

/** Bytes of a packed panel. */
export function panelBytes(type: WeightType, columns: number, lanes: number): number {
  const { size, numBytes } = weightBlock(type);
  return Math.ceil(columns / size) * numBytes * lanes;
}

const formatOf = (type: WeightType): QuantizedFormat => {
  const format = quantizedFormat(type);
  if (format === undefined) throw new Error(`${type} is not quantised`);
  return format;
};

function zeroSums(k: KernelBuilder, spec: MatmulSpec): Sums {
  return Array.from({ length: spec.panels }, () => Array.from({ length: spec.tokens }, () => k.var("f32v", 0)));
}

/** Calls `body` for each task with its first panel and the tokens [from, to). */
function forTasks(k: KernelBuilder, spec: MatmulSpec, p: Params, body: (panel: Value<"i32">, from: Value<"i32">, to: Value<"i32">) => void): void {
  k.forTasks((task) => {
    const block = k.let(task.divU(p.numGroups));
    const panel = k.let(task.sub(block.mul(p.numGroups)).mul(spec.panels));
    const from = k.let(block.mul(p.tokenBlock));
    const end = k.let(from.add(p.tokenBlock));
    body(panel, from, k.let(k.select(end.lt(p.numTokens), end, p.numTokens)));
  });
}

/** Goes through [from, to) in register tiles. A last, incomplete tile repeats its last token, and stores each only once. */
function forTokenTiles(
  k: KernelBuilder,
  spec: MatmulSpec,
  from: Value<"i32">,
  to: Value<"i32">,
  body: (tokens: readonly Value<"i32">[], first: Value<"i32">) => void,
): void {
  if (spec.tokens === 1) return k.for(from, to, 1, (token) => body([token], token));
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
function storeTile(k: KernelBuilder, spec: MatmulSpec, p: Params, panel: Value<"i32">, tokens: readonly Value<"i32">[], first: Value<"i32">, to: Value<"i32">, sums: Sums): void {
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

function tokenBlocks(k: KernelBuilder, spec: MatmulSpec, p: Params, tokens: readonly Value<"i32">[]): { row: Value<"i32">; metas: Value<"i32"> }[] {
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

/** Few tokens: weights are unpacked in registers, once for the tile's tokens. */
export const integerDirect = defineKernel({
  name: "matmulIntegerDirect",
  params,
  build(k, spec: MatmulSpec, p) {
    const format = formatOf(spec.type);
    const subBlocks = numSubBlocks(format);
    const blockBytes = weightBlock(spec.type).numBytes * k.lanes;
    const bytesOfPanel = panelBytes(spec.type, spec.columns, k.lanes);
    forTasks(k, spec, p, (panel, from, to) => {
      const panelStart = k.let(p.weights.add(panel.mul(bytesOfPanel)));
      forTokenTiles(k, spec, from, to, (tokens, first) => {
        const sums = zeroSums(k, spec);
        const rows = tokenBlocks(k, spec, p, tokens);
        k.for(0, spec.columns / (subBlocks * activationBlock), 1, (block) => {
          const blocks = sums.map((_, index) => {
            const address = k.let(panelStart.add(block.mul(blockBytes)).add(index * bytesOfPanel));
            return format.open(k, fieldReader(k, format, address));
          });
          for (let sub = 0; sub < subBlocks; sub++) {
            const source = registerSource(format, blocks, sub);
            const column = k.let(block.mul(subBlocks).add(sub));
            const blockTokens = rows.map(
              ({ row, metas }): TokenBlock => ({
                integers: k.let(row.add(column.mul(activationBlock * integerSize(spec)))),
                meta: k.let(metas.add(column.mul(16))),
              }),
            );
            accumulateSubBlock(k, format, integerArithmetic(spec), source, blockTokens, sums);
          }
        });
        storeTile(k, spec, p, panel, tokens, first, to, sums);
      });
    });
  },
});

function registerSource(format: QuantizedFormat, blocks: readonly OpenBlock[], sub: number): WeightSource {
  const groups = 32 / format.groupSize;
  return {
    bytes: (panel, unit) => blocks[panel].bytes(sub, unit),
    halves: (panel, unit) => {
      const bytes = blocks[panel].bytes(sub, unit);
      return [bytes.widenLow(), bytes.widenHigh()];
    },
    scale: (panel, group) => blocks[panel].scale(sub * groups + group),
    minimum: (panel, group) => blocks[panel].minimum(sub * groups + group),
  };
}

/** Bytes of an expanded sub-block of one panel: integers, then scales and minima as f32 vectors. */
function expandedLayout(format: QuantizedFormat, arithmetic: "i8" | "i16", lanes: number): { scales: number; minima: number; numBytes: number } {
  const vector = lanes * 4;
  const scales = vector * (arithmetic === "i8" ? 8 : 16);
  const groups = 32 / format.groupSize;
  const minima = scales + groups * vector;
  return { scales, minima, numBytes: minima + (format.hasMinimum ? groups * vector : 0) };
}

/** Many tokens: the panels are expanded to integers and f32 scales in scratch memory, then met by all tokens of the task. */
export const integerExpanded = defineKernel({
  name: "matmulIntegerExpanded",
  params,
  scratchBytes: (spec: MatmulSpec, target) =>
    (spec.columns / activationBlock) * spec.panels * expandedLayout(formatOf(spec.type), integerArithmetic(spec), target.lanes).numBytes,
  build(k, spec: MatmulSpec, p) {
    const format = formatOf(spec.type);
    const arithmetic = integerArithmetic(spec);
    const layout = expandedLayout(format, arithmetic, k.lanes);
    const stepBytes = layout.numBytes * spec.panels;
    forTasks(k, spec, p, (panel, from, to) => {
      for (let index = 0; index < spec.panels; index++) expandIntegers(k, spec, p, k.let(panel.add(index)), index * layout.numBytes, stepBytes);
      forTokenTiles(k, spec, from, to, (tokens, first) => {
        const sums = zeroSums(k, spec);
        const rows = tokenBlocks(k, spec, p, tokens);
        k.for(0, spec.columns / activationBlock, 1, (column) => {
          const expanded = k.let(k.scratch.add(column.mul(stepBytes)));
          const blockTokens = rows.map(
            ({ row, metas }): TokenBlock => ({
              integers: k.let(row.add(column.mul(activationBlock * integerSize(spec)))),
              meta: k.let(metas.add(column.mul(16))),
            }),
          );
          accumulateSubBlock(k, format, arithmetic, expandedSource(k, expanded, layout), blockTokens, sums);
        });
        storeTile(k, spec, p, panel, tokens, first, to, sums);
      });
    });
  },
});

function expandedSource(k: KernelBuilder, address: Value<"i32">, layout: { scales: number; minima: number; numBytes: number }): WeightSource {
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

function expandIntegers(k: KernelBuilder, spec: MatmulSpec, p: Params, panel: Value<"i32">, offset: number, stepBytes: number): void {
  const format = formatOf(spec.type);
  const arithmetic = integerArithmetic(spec);
  const layout = expandedLayout(format, arithmetic, k.lanes);
  const vector = k.lanes * 4;
  const subBlocks = numSubBlocks(format);
  const groups = 32 / format.groupSize;
  forBlocks(k, spec, p, panel, (open, block) => {
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
        if (format.hasMinimum) k.store("f32v", target, open.minimum(sub * groups + group), layout.minima + group * vector);
      }
    }
  });
}

/** Opens each block of a panel in turn. */
function forBlocks(k: KernelBuilder, spec: MatmulSpec, p: Params, panel: Value<"i32">, body: (open: OpenBlock, block: Value<"i32">) => void): void {
  const format = formatOf(spec.type);
  const { size, numBytes } = weightBlock(spec.type);
  const start = k.let(p.weights.add(panel.mul(panelBytes(spec.type, spec.columns, k.lanes))));
  k.for(0, spec.columns / size, 1, (block) => {
    const address = k.let(start.add(block.mul(numBytes * k.lanes)));
    body(format.open(k, fieldReader(k, format, address)), block);
  });
}

/** Activations in f32: weights are expanded to f32 in scratch memory (those stored as f32 are read where they are). */
export const f32Expanded = defineKernel({
  name: "matmulF32",
  params,
  scratchBytes: (spec: MatmulSpec, target) => (spec.type === "F32" ? 0 : spec.columns * spec.panels * target.lanes * 4),
  build(k, spec: MatmulSpec, p) {
    const vector = k.lanes * 4;
    const expandedPanel = spec.columns * vector;
    forTasks(k, spec, p, (panel, from, to) => {
      const isStoredExpanded = spec.type === "F32";
      if (!isStoredExpanded) {
        for (let index = 0; index < spec.panels; index++) expandToF32(k, spec, p, k.let(panel.add(index)), index * expandedPanel);
      }
      const panelStart = isStoredExpanded ? k.let(p.weights.add(panel.mul(expandedPanel))) : k.scratch;
      forTokenTiles(k, spec, from, to, (tokens, first) => {
        const sums = zeroSums(k, spec);
        const rows = tokens.map((token) => k.let(p.activations.add(token.mul(spec.columns * 4))));
        const step = (weights: Value<"i32">, x: readonly Value<"i32">[], column: number): void => {
          const loaded = sums.map((_, index) => k.let(k.load("f32v", weights, index * expandedPanel + column * vector)));
          x.forEach((address, t) => {
            const activation = k.let(k.loadSplatF32(address, column * 4));
            sums.forEach((row, index) => {
              row[t].set(loaded[index].fma(activation, row[t].value));
            });
          });
        };
        const unrolled = spec.columns - (spec.columns % 4);
        k.for(0, unrolled, 4, (column) => {
          const weights = k.let(panelStart.add(column.mul(vector)));
          const x = rows.map((row) => k.let(row.add(column.mul(4))));
          for (let c = 0; c < 4; c++) step(weights, x, c);
        });
        for (let c = unrolled; c < spec.columns; c++) step(panelStart, rows, c);
        storeTile(k, spec, p, panel, tokens, first, to, sums);
      });
    });
  },
});

function expandToF32(k: KernelBuilder, spec: MatmulSpec, p: Params, panel: Value<"i32">, offset: number): void {
  const vector = k.lanes * 4;
  if (spec.type === "F16" || spec.type === "BF16") {
    const start = k.let(p.weights.add(panel.mul(spec.columns * k.lanes * 2)));
    k.for(0, spec.columns, 1, (column) => {
      const half = k.load("u16 to i32v", start.add(column.mul(k.lanes * 2)));
      k.store("f32v", k.scratch.add(column.mul(vector)), spec.type === "F16" ? f16ToF32(k, half) : bf16ToF32(half), offset);
    });
    return;
  }
  forBlocks(k, spec, p, panel, (open, block) => {
    const format = formatOf(spec.type);
    const target = k.let(k.scratch.add(block.mul(weightBlock(spec.type).size * vector)).add(offset));
    for (let sub = 0; sub < numSubBlocks(format); sub++) storeSubBlock(k, format, open, sub, target);
  });
}

/** The 32 weights of a sub-block as f32 vectors, in order. */
function storeSubBlock(k: KernelBuilder, format: QuantizedFormat, open: OpenBlock, sub: number, target: Value<"i32">): void {
  const vector = k.lanes * 4;
  const groups = 32 / format.groupSize;
  const scales = Array.from({ length: groups }, (_, group) => k.let(open.scale(sub * groups + group)));
  const minima = scales.map((_, group) => (format.hasMinimum ? k.let(open.minimum(sub * groups + group)) : undefined));
  for (const unit of format.unitOrder) {
    const group = Math.floor((unit * 4) / format.groupSize);
    const four = k.let(open.bytes(sub, unit).as("i32v"));
    for (let byte = 0; byte < 4; byte++) {
      const integer = four.shl(24 - 8 * byte).shr(24).sub(format.zero);
      let value = integer.toF32().mul(scales[group]);
      const minimum = minima[group];
      if (minimum !== undefined) value = value.sub(minimum);
      k.store("f32v", target, value, (sub * 32 + unit * 4 + byte) * vector);
    }
  }
}
