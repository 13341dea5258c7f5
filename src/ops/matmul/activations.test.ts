import { describe, expect, it } from "vitest";
import { featureSets, runKernel } from "../../../test/kernels/runKernel.ts";
import { normals } from "../../../test/ops/testDevice.ts";
import { activationBlock, activationRowBytes, meta, metaStart, quantizeActivations } from "./activations.ts";

interface QuantizedBlock {
  readonly integers: Int16Array | Int8Array;
  readonly scale: number;
  readonly negativeSums: readonly [number, number];
  readonly negativeSumAll: number;
}

describe.each(featureSets)("quantised activations with %s", (_name, features) => {
  describe.each([
    ["i8", 127, Int8Array],
    ["i16", 32767, Int16Array],
  ] as const)("of %s", (arithmetic, largest, Integers) => {
    /** The blocks of rows of `columns` activations. */
    function quantized(x: Float32Array, columns: number): QuantizedBlock[] {
      const [rows, rowBytes] = [x.length / columns, activationRowBytes(arithmetic, columns)];
      const out = new Uint8Array(rows * rowBytes);
      runKernel(quantizeActivations, { arithmetic, columns }, { x, out }, { features, calls: [[0, rows]] });
      return Array.from({ length: x.length / activationBlock }, (_, index) => {
        const [row, block] = [Math.floor((index * activationBlock) / columns), index % (columns / activationBlock)];
        const at = row * rowBytes + block * activationBlock * Integers.BYTES_PER_ELEMENT;
        const words = new DataView(out.buffer, row * rowBytes + metaStart(arithmetic, columns) + block * 16);
        const float = (offset: number): number => words.getFloat32(offset, true);
        return {
          integers: new Integers(out.buffer, at, activationBlock),
          scale: float(meta.scale),
          negativeSums: [float(meta.negativeSum[0]), float(meta.negativeSum[1])],
          negativeSumAll: float(meta.negativeSumAll),
        };
      });
    }

    it("are within half a step of each activation, and use the whole range", () => {
      const [rows, columns] = [5, 96];
      const x = normals(rows * columns, 1);
      quantized(x, columns).forEach(({ integers, scale }, block) => {
        const values = x.subarray(block * activationBlock, (block + 1) * activationBlock);
        const absMax = Math.max(...values.map(Math.abs));
        expect(scale).toBe(Math.fround(absMax / largest));
        expect(Math.max(...integers.map(Math.abs))).toBe(largest);
        integers.forEach((integer, i) => {
          expect(Math.abs(integer * scale - values[i])).toBeLessThanOrEqual(scale * (0.5 + 2 ** -8));
        });
      });
    });

    it("carry the sums of their halves, scaled and negated", () => {
      for (const { integers, scale, negativeSums, negativeSumAll } of quantized(normals(256, 2), 128)) {
        const sum = (from: number, to: number): number => [...integers].slice(from, to).reduce((a, b) => a + b, 0);
        expect(negativeSums).toEqual([Math.fround(-scale * sum(0, 16)), Math.fround(-scale * sum(16, 32))]);
        expect(negativeSumAll).toBe(Math.fround(-scale * sum(0, 32)));
      }
    });

    it("round to even, and keep the largest of either sign", () => {
      const x = new Float32Array(activationBlock);
      x.set([largest, -largest, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -0]);
      const [{ integers, scale }] = quantized(x, activationBlock);
      expect(scale).toBe(1);
      expect([...integers.subarray(0, 10)]).toEqual([largest, -largest, 0, 2, 2, 0, -2, -2, 0, 0]);
    });

    it("of nothing but zeros are zeros", () => {
      const [block] = quantized(new Float32Array(activationBlock).fill(-0), activationBlock);
      expect(block.integers.every((integer) => integer === 0)).toBe(true);
      expect([block.scale, ...block.negativeSums, block.negativeSumAll].map(Math.abs)).toEqual([0, 0, 0, 0]);
    });

    it("too small to divide by count as zeros", () => {
      const [block] = quantized(new Float32Array(activationBlock).fill(1e-38), activationBlock);
      expect(block.integers.every((integer) => integer === 0)).toBe(true);
      expect([block.scale, ...block.negativeSums, block.negativeSumAll].every(Number.isFinite)).toBe(true);
    });

    it.each([Number.NaN, Number.POSITIVE_INFINITY])("with %f somewhere have no finite scale", (bad) => {
      for (const at of [0, 5, 31]) {
        const x = normals(activationBlock, 7);
        x[at] = bad;
        expect(quantized(x, activationBlock)[0].scale).toBeNaN();
      }
    });

    it("do not depend on the other blocks", () => {
      const x = normals(96, 3);
      const together = quantized(x, 96);
      x.fill(1e6, 0, 32);
      expect(quantized(x, 96).slice(1)).toEqual(together.slice(1));
    });
  });
});
