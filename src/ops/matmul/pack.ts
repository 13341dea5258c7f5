/** Interleaves the rows of a weight matrix into panels, as packedBlock.ts and panels.ts describe. The result has the file's size (last panel padded). */

import { defineKernel, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { type WeightType, weightBlock } from "../../tensor/index.ts";
import { formatOf, packedOffset, quantizedFormat } from "./formats.ts";
import { panelBlockStride, panelStart } from "./panels.ts";

/** What specialises the packing kernel. */
export interface PackSpec {
  readonly type: WeightType;
  readonly columns: number;
}

/** source: rows as in the file; out: panels. Rows from `rows` on are zeros. A task is a panel. */
export const packPanels = defineKernel({
  name: "packPanels",
  params: { source: "pointer", out: "pointer", rows: "i32" },
  build(k, spec: PackSpec, p) {
    const { size, numBytes } = weightBlock(spec.type);
    const rowBytes = (spec.columns / size) * numBytes;
    const format = quantizedFormat(spec.type);
    k.forTasks((panel) => {
      const target = panelStart(k, spec, p.out, panel);
      for (let lane = 0; lane < k.lanes; lane++) {
        const row = k.let(panel.mul(k.lanes).add(lane));
        k.if(
          row.lt(p.rows),
          () => {
            const source = k.let(p.source.add(row.mul(rowBytes)));
            k.for(0, spec.columns / size, 1, (block) => {
              const from = k.let(source.add(block.mul(numBytes)));
              const to = k.let(target.add(block.mul(panelBlockStride(spec.type, k.lanes))));
              if (format !== undefined) packBlock(k, spec.type, from, to, lane);
              else if (numBytes === 4) k.store("i32", to, k.load("i32", from), lane * 4);
              else k.store("u16", to, k.load("u16", from), lane * 2);
            });
          },
          () => {
            k.for(0, spec.columns / size, 1, (block) => {
              const to = k.let(target.add(block.mul(panelBlockStride(spec.type, k.lanes))));
              if (format !== undefined) packBlock(k, spec.type, undefined, to, lane);
              else if (numBytes === 4) k.store("i32", to, 0, lane * 4);
              else k.store("u16", to, 0, lane * 2);
            });
          },
        );
      }
    });
  },
});

/** Writes one row's units of a block; zeros where there is no row. */
function packBlock(
  k: KernelBuilder,
  type: WeightType,
  from: Value<"i32"> | undefined,
  to: Value<"i32">,
  lane: number,
): void {
  const format = formatOf(type);
  format.fields.forEach(({ source, unitBytes, count, spreadBits }, field) => {
    for (let unit = 0; unit < count; unit++) {
      const offset = packedOffset(format, field, unit, k.lanes) + lane * unitBytes;
      const form = unitBytes === 4 ? "i32" : "u16";
      if (from === undefined) k.store(form, to, 0, offset);
      else {
        const word = k.load(form, from, source + unit * unitBytes);
        k.store(form, to, spreadBits === true ? spread(k, word) : word, offset);
      }
    }
  });
}

/** Bit 4 j + b goes to bit 8 b + j. */
function spread(k: KernelBuilder, word: Value<"i32">): Value<"i32"> {
  const bits = k.let(word);
  let result: Value<"i32"> = k.i32(0);
  for (let j = 0; j < 8; j++) {
    const four = k.let(bits.shrU(4 * j).and(15));
    // Copies of the four bits, shifted so that bit b stands at bit 8 b, then one bit of each byte.
    const spaced = four.or(four.shl(7)).or(four.shl(14)).or(four.shl(21)).and(0x01010101);
    result = k.let(result.or(spaced.shl(j)));
  }
  return result;
}
