/** Things that have two forms and one meaning: where rotation happens, the order of rotated channels, and the size of chunks. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { attendMla, type MlaCase, makeMlaCase } from "../../../test/fixtures/attention/mlaCase.ts";
import { TestDevice, worstError } from "../../../test/ops/testDevice.ts";
import { type RopeSpec, RopeTable, ropeReference } from "../../ops/rope/index.ts";
import { BatchMLAPagedAttention } from "./index.ts";

const tolerance = { relative: 1e-5, absolute: 1e-5 };
const dims = { numHeads: 3, kvLoraRank: 32, qkRopeHeadDim: 8, qkNopeHeadDim: 16, vHeadDim: 24, pageSize: 4 };
const interleaved: RopeSpec = {
  headDim: 8,
  rotaryDim: 8,
  style: "interleaved",
  theta: 100,
  scaling: { type: "default" },
};

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

const made = makeMlaCase({
  ...dims,
  lengths: [
    [5, 50],
    [1, 8],
    [3, 3],
  ],
});

/** The case with queries and cached keys rotated at their positions beforehand. */
function rotatedBefore(spec: RopeSpec): MlaCase {
  const { batch, qPe, kpe } = made;
  const [queries, keys] = [Float32Array.from(qPe), Float32Array.from(kpe)];
  for (let s = 0; s < batch.numSeqs; s++) {
    const [begin, end] = [batch.queryIndptr[s], batch.queryIndptr[s + 1]];
    const positions = Array.from({ length: end - begin }, (_, i) => batch.kvLens[s] - (end - begin) + i);
    queries.set(ropeReference(spec, qPe.subarray(begin * 24, end * 24), positions, 3), begin * 24);
    for (const [t, slot] of made.slotsOf(s).entries()) {
      keys.set(ropeReference(spec, kpe.subarray(slot * 8, slot * 8 + 8), [t], 1), slot * 8);
    }
  }
  return { ...made, qPe: queries, kpe: keys };
}

/** Channels of pairs (2 i, 2 i + 1) at i and i + 4. */
function asHalves(values: Float32Array): Float32Array {
  return values.map((_, at) => {
    const [vector, d] = [at - (at % 8), at % 8];
    return values[vector + (d < 4 ? 2 * d : 2 * (d - 4) + 1)];
  });
}

describe.each(["absorbed", "rebuilt"] as const)("%s latent attention", (form) => {
  it("rotates once: on load, or before caching", async () => {
    const table = test.f32([50, 8], new RopeTable(interleaved).rows(50));
    const onLoad = await attendMla(test, made, { form, rope: { style: "interleaved" } }, { ropeTable: table });
    const before = await attendMla(test, rotatedBefore(interleaved), { form });
    expect(worstError(onLoad.out, before.out, tolerance)).toBeLessThan(1);
    expect(worstError(onLoad.lse, before.lse, tolerance)).toBeLessThan(1);
    const never = await attendMla(test, made, { form });
    expect(worstError(never.lse, before.lse, tolerance)).toBeGreaterThan(100);
  });

  it("gives the same logits for rotated pairs side by side and for rotated halves", async () => {
    const halves = { ...made, qPe: asHalves(made.qPe), kpe: asHalves(made.kpe) };
    const table = test.f32([50, 8], new RopeTable(interleaved).rows(50));
    const first = await attendMla(test, made, { form, rope: { style: "interleaved" } }, { ropeTable: table });
    const second = await attendMla(test, halves, { form, rope: { style: "halves" } }, { ropeTable: table });
    expect(worstError(second.lse, first.lse, tolerance)).toBeLessThan(1);
    expect(worstError(second.out, first.out, tolerance)).toBeLessThan(1);
  });
});

describe("rebuilt latent attention", () => {
  it("gives the same with a context in one piece and in chunks of any size", async () => {
    const once = await attendMla(test, made, { form: "rebuilt", rebuiltTokens: 1000 });
    for (const rebuiltTokens of [1, 7, 32, 46]) {
      const chunked = await attendMla(test, made, { form: "rebuilt", rebuiltTokens });
      expect(worstError(chunked.out, once.out, tolerance)).toBeLessThan(1);
      expect(worstError(chunked.lse, once.lse, tolerance)).toBeLessThan(1);
    }
  });

  it("holds no more than its chunk, whatever the context", async () => {
    const bytesFor = (kvLen: number): number => {
      const long = makeMlaCase({ ...dims, numHeads: 16, lengths: [[4, kvLen]] });
      const spec = { ...long.spec, rope: undefined, form: "rebuilt", rebuiltTokens: 64 } as const;
      const before = test.device.stats().usedBytes;
      const attention = new BatchMLAPagedAttention(test.device, spec);
      attention.plan(long.batch);
      const used = test.device.stats().usedBytes - before;
      attention.release();
      return used;
    };
    bytesFor(200); // compiles the kernels, which stay
    const before = test.device.stats().usedBytes;
    // 16 heads of 48 channels: 3 KiB a token, of which 64 are held. The rest is lists and the plans of the chunks.
    expect(bytesFor(2000) - bytesFor(200)).toBeLessThan(1800 * 200);
    expect(test.device.stats().usedBytes).toBe(before);
  });
});
