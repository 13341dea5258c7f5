/**
 * The table of quantised weight types: every format that kernels can read, by type. A new type is a new entry, its layout written in the
 * file of its family; what a format says is in packedBlock.ts.
 */

import type { KernelBuilder, Value } from "../../kernels/index.ts";
import { type WeightType, weightBlock } from "../../tensor/index.ts";
import { iq4_nl, iq4_xs } from "./iQuantFormats.ts";
import { q2_k, q3_k, q4_k, q5_k, q6_k } from "./kQuantFormats.ts";
import { q4_0, q4_1, q5_0, q5_1, q8_0 } from "./legacyFormats.ts";
import { fieldReader, type OpenBlock, type QuantizedFormat } from "./packedBlock.ts";
import { panelBlockStride } from "./panels.ts";

export { fieldReader, type OpenBlock, packedOffset, type QuantizedFormat } from "./packedBlock.ts";

const formats = [q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs];

/** Undefined for F32, F16 and BF16, which are not quantised. */
export function quantizedFormat(type: WeightType): QuantizedFormat | undefined {
  return formats.find((format) => format.type === type);
}

/** Sub-blocks of 32 weights in a block. */
export const numSubBlocks = (format: QuantizedFormat): number => weightBlock(format.type).size / 32;

/** The format of a type that must be quantised. */
export function formatOf(type: WeightType): QuantizedFormat {
  const format = quantizedFormat(type);
  if (format === undefined) throw new Error(`${type} is not quantised`);
  return format;
}

/** Opens each block of the panel that begins at `start`. */
export function forBlocks(
  k: KernelBuilder,
  type: WeightType,
  columns: number,
  start: Value<"i32">,
  body: (open: OpenBlock, block: Value<"i32">) => void,
): void {
  const format = formatOf(type);
  const stride = panelBlockStride(type, k.lanes);
  k.for(0, columns / weightBlock(type).size, 1, (block) => {
    body(format.open(k, fieldReader(k, format, k.let(start.add(block.mul(stride))))), block);
  });
}
