import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultSpec, onDevice, raggedCase } from "../../../test/fixtures/attention/ragged.ts";
import { bitsOf } from "../../../test/ops/testDevice.ts";
import { CpuDevice } from "../../devices/index.ts";
import type { AttentionSpec } from "./contract.ts";

const specs: readonly Partial<AttentionSpec>[] = [
  { numQHeads: 1, numKvHeads: 1, headDim: 8 },
  { numQHeads: 4, numKvHeads: 2, headDim: 32, headDimV: 16 },
  { numQHeads: 3, numKvHeads: 1, headDim: 24 },
  { numQHeads: 8, numKvHeads: 2, headDim: 128, slidingWindow: 37 },
  { numQHeads: 5, numKvHeads: 1, headDim: 64, softCap: 3 },
  { numQHeads: 16, numKvHeads: 2, headDim: 16 },
];

describe("one token over pages, without scratch rows", () => {
  let device: CpuDevice;
  beforeAll(async () => {
    device = await CpuDevice.create({ threads: 1 });
  });
  afterAll(() => device.close());

  // The last token of a prompt of two goes through scratch rows with the one before it.
  it.each((["f32", "f16", "bf16"] as const).flatMap((storage) => specs.map((spec) => ({ ...spec, storage }))))(
    "has the bits of the same token in company: %j",
    async (changes) => {
      const spec = defaultSpec({ pageSize: 16, ...changes });
      const [alone, together] = [1, 2].map((queryLen) => raggedCase(spec, [{ queryLen, kvLen: 301 }]));
      const [one, two] = [await onDevice(device, alone), await onDevice(device, together)];
      expect(bitsOf(one.out)).toEqual(bitsOf(two.out.subarray(one.out.length)));
      expect(bitsOf(one.lse)).toEqual(bitsOf(two.lse.subarray(one.lse.length)));
    },
  );

  const spec = defaultSpec({ numQHeads: 4, numKvHeads: 1, headDim: 32, storage: "f16", pageSize: 8 });
  const lengths = [{ queryLen: 1, kvLen: 75 }];
  const rowOf = (page: number, slot: number): number => (page * 8 + slot) * 32;

  it("passes NaN in a value on to its channel alone", async () => {
    const given = raggedCase(spec, lengths);
    given.vPages[rowOf(given.batch.blockTables[8], 3) + 5] = Number.NaN;
    const { out, lse } = await onDevice(device, given);
    expect([0, 1, 2, 3].map((head) => out[head * 32 + 5])).toEqual(Array(4).fill(Number.NaN));
    expect(out.filter(Number.isNaN)).toHaveLength(4);
    expect([...lse].every(Number.isFinite)).toBe(true);
  });

  it("makes NaN of a row that meets a key of NaN", async () => {
    const given = raggedCase(spec, lengths);
    given.kPages[rowOf(given.batch.blockTables[2], 7) + 31] = Number.NaN;
    const { out } = await onDevice(device, given);
    expect([...out].every(Number.isNaN)).toBe(true);
  });

  it("reads the largest and the smallest halves exactly", async () => {
    const given = raggedCase(spec, [{ queryLen: 1, kvLen: 1 }]);
    const at = rowOf(given.batch.blockTables[0], 0);
    const values = [65504, -65504, 2 ** -24, -(2 ** -24), 2 ** -14, 0, -0, 1023 * 2 ** -24];
    given.vPages.set(values, at);
    const { out } = await onDevice(device, given);
    expect([...out.subarray(0, 8)]).toEqual(values.map((value) => value + 0));
  });
});
