import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CpuDevice } from "../../devices/index.ts";
import { attentionFactor, inverseFrequencies, type RopeSpec, RopeTable, recordRope, ropeReference } from "./index.ts";

let device: CpuDevice;
beforeAll(async () => {
  device = await CpuDevice.create({ threads: 2 });
});
afterAll(() => device.close());

const plain: RopeSpec = { headDim: 64, rotaryDim: 64, style: "halves", theta: 10000, scaling: { type: "default" } };

async function onDevice(spec: RopeSpec, x: Float32Array, positions: Int32Array, numHeads: number, rowStride?: number) {
  const table = new RopeTable(spec).rows(Math.max(...positions) + 1);
  const [xs, at, rows] = [x, positions, table].map((values) => device.allocate(values.byteLength, "test"));
  device.f32(xs).set(x);
  device.i32(at).set(positions);
  device.f32(rows).set(table);
  const commands = device.commands();
  const args = { x: xs.pointer, positions: at.pointer, table: rows.pointer, numRows: positions.length, numHeads };
  recordRope({ device, commands }, spec, { ...args, rowStride });
  await device.run(commands);
  const y = device.f32(xs).slice(0, x.length);
  for (const buffer of [xs, at, rows]) device.free(buffer);
  commands.free();
  return y;
}

describe("rope on the cpu equals the reference", () => {
  const positions = Int32Array.of(0, 1, 5, 4095, 3, 20000);
  it.each([
    ["halves", 64, 64],
    ["halves", 80, 40],
    ["halves", 16, 6],
    ["interleaved", 64, 64],
    ["interleaved", 80, 32],
    ["interleaved", 8, 2],
  ] as const)("for %s, head dimension %i, %i rotating channels", async (style, headDim, rotaryDim) => {
    const spec: RopeSpec = { ...plain, style, headDim, rotaryDim };
    const x = Float32Array.from({ length: positions.length * 3 * headDim }, (_, i) => Math.sin(i * 1.7));
    const y = await onDevice(spec, x, positions, 3);
    const want = ropeReference(spec, x, positions, 3);
    expect(Math.max(...y.map((value, i) => Math.abs(value - want[i])))).toBeLessThan(3e-7);
    const tail = (values: ArrayLike<number>) => Array.from(values).filter((_, i) => i % headDim >= rotaryDim);
    expect(tail(y)).toEqual(tail(x));
  });

  it("in the first heads of wider rows, and nowhere else", async () => {
    const x = Float32Array.from({ length: 2 * 5 * 64 }, (_, i) => Math.cos(i));
    const y = await onDevice(plain, x, Int32Array.of(3, 9), 2, 5 * 64);
    const want = ropeReference(plain, x.slice(0, 128), [3], 2);
    expect(Math.max(...want.map((value, i) => Math.abs(value - y[i])))).toBeLessThan(3e-7);
    expect(y.slice(128, 320)).toEqual(x.slice(128, 320));
    expect(y.slice(448)).toEqual(x.slice(448));
  });
});

describe("frequencies", () => {
  it("fall geometrically from 1", () => {
    const frequencies = inverseFrequencies({ ...plain, headDim: 8, rotaryDim: 8, theta: 16 });
    expect([...frequencies]).toEqual([1, 0.5, 0.25, 0.125]);
  });

  it("are divided by the factors of a file", () => {
    const scaling = { type: "factors", factors: [1, 2, 4, 8] } as const;
    const frequencies = inverseFrequencies({ ...plain, headDim: 8, rotaryDim: 8, theta: 16, scaling });
    expect([...frequencies]).toEqual([1, 0.25, 0.0625, 0.015625]);
  });

  it("of longrope change when the sequence outgrows the original context", () => {
    const scaling = {
      type: "longrope",
      shortFactors: [1, 1],
      longFactors: [2, 4],
      originalMaxPositionEmbeddings: 100,
      maxPositionEmbeddings: 1000,
    } as const;
    const spec: RopeSpec = { ...plain, headDim: 4, rotaryDim: 4, theta: 16, scaling };
    expect([...inverseFrequencies(spec, 100)]).toEqual([1, 0.25]);
    expect([...inverseFrequencies(spec, 101)]).toEqual([0.5, 0.0625]);
    expect(attentionFactor(spec)).toBeCloseTo(Math.sqrt(1.5), 12);
  });

  it.each<[Partial<RopeSpec>, string]>([
    [{ rotaryDim: 65 }, "rotaryDim must be an even integer from 2 to headDim = 64, got 65"],
    [{ rotaryDim: 66 }, "rotaryDim must be an even integer from 2 to headDim = 64, got 66"],
    [{ theta: 0 }, "theta must be a positive number, got 0"],
    [{ scaling: { type: "linear", factor: -2 } }, "scaling.factor must be a positive number, got -2"],
    [{ scaling: { type: "factors", factors: [1] } }, "scaling.factors must have rotaryDim / 2 = 32 entries, got 1"],
  ])("refuse %j", (changes, message) => {
    expect(() => inverseFrequencies({ ...plain, ...changes })).toThrow(message);
  });
});

describe("the table", () => {
  it("can be written in parts", () => {
    const table = new RopeTable(plain);
    const many = table.rows(100);
    const parts = new Float32Array(6400);
    table.write(parts, 0, 3);
    table.write(parts, 3, 100);
    expect(parts).toEqual(many);
    expect(many).toHaveLength(6400);
    expect(many[99 * 64]).toBe(Math.fround(Math.cos(99)));
    expect(many[99 * 64 + 32]).toBe(Math.fround(Math.sin(99)));
  });
});
