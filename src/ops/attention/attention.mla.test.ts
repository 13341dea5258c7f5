import { afterAll, beforeAll, describe, it } from "vitest";
import { expectEqualsReference, mixed } from "../../../test/fixtures/attention/equalsReference.ts";
import {
  defaultSpec,
  type Lengths,
  type PlacePages,
  raggedCase,
  withPageLists,
} from "../../../test/fixtures/attention/ragged.ts";
import { type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import type { CpuDevice } from "../../devices/index.ts";
import { RopeTable } from "../rope/index.ts";
import type { AttentionSpec } from "./contract.ts";

function mlaSpec(rank: number, ropeDim: number, changes: Partial<AttentionSpec> = {}): AttentionSpec {
  const heads = { numQHeads: 4, numKvHeads: 1 };
  return defaultSpec({ ...heads, headDim: rank + ropeDim, headDimV: rank, mla: { ropeDim }, ...changes });
}

const few: readonly Lengths[] = [
  { queryLen: 1, kvLen: 70 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 9, kvLen: 33 },
];

/** ckv and kpe of a token in one row. */
const fused =
  (rank: number, ropeDim: number, pageSize: number): PlacePages =>
  (memory, k, v) => {
    const row = rank + ropeDim;
    const tokens = k.units.length / rank;
    const all = new Float32Array(tokens * row);
    for (let t = 0; t < tokens; t++) {
      all.set(k.units.subarray(t * rank, (t + 1) * rank), t * row);
      all.set(v.units.subarray(t * ropeDim, (t + 1) * ropeDim), t * row + rank);
    }
    const strides = { page: pageSize * row, slot: row, head: 0 };
    const kPages = memory.upload(all);
    return { kPages, vPages: kPages + rank * 4, kStrides: strides, vStrides: strides };
  };

/** FlashMLA's token: codes, the f32 scales of their tiles, and the rope part in bf16, 656 bytes at rank 512. */
const fp8Tokens =
  (rank: number, ropeDim: number, pageSize: number): PlacePages =>
  (memory, k, v) => {
    const tokens = k.units.length / rank;
    const scales = k.scales.length / tokens;
    const row = rank + 4 * scales + 2 * ropeDim;
    const bytes = new Uint8Array(tokens * row);
    const views = [k.units, k.scales, v.units].map((part) => {
      const all = new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
      return { all, length: all.length / tokens };
    });
    for (let t = 0, at = 0; t < tokens; t++) {
      for (const { all, length } of views) {
        bytes.set(all.subarray(t * length, (t + 1) * length), at);
        at += length;
      }
    }
    const strides = (unitBytes: number) => ({ page: (pageSize * row) / unitBytes, slot: row / unitBytes, head: 0 });
    const kPages = memory.upload(bytes);
    return {
      kPages,
      kStrides: strides(1),
      kScales: kPages + rank,
      kScaleStrides: strides(4),
      vPages: kPages + rank + 4 * scales,
      vStrides: strides(2),
    };
  };

describe.each(Object.entries(testDevices))("latent attention equals the reference on a %s", (_name, create) => {
  let test: TestDevice;
  let device: CpuDevice;
  beforeAll(async () => {
    test = await create();
    device = test.device;
  });
  afterAll(() => test.close());

  it.each([
    [16, 8],
    [32, 0],
    [10, 6],
    [7, 3],
    [256, 32],
    [512, 64],
  ])("for a rank of %i and %i rope channels", (rank, ropeDim) =>
    expectEqualsReference(device, raggedCase(mlaSpec(rank, ropeDim, { splitSize: 32 }), few, 1, 3), 100),
  );

  it.each([1, 3, 9, 40, 71, 128])("for %i heads", (numQHeads) =>
    expectEqualsReference(device, raggedCase(mlaSpec(24, 8, { numQHeads, splitSize: 32 }), few, 1, 3), 100),
  );

  it.each([1, 3, 16, 64, undefined])("for pages of %s tokens", (pageSize) =>
    expectEqualsReference(device, raggedCase(mlaSpec(24, 8, { pageSize }), mixed, 1, 3)),
  );

  it("for lists of pages one behind the other", () => {
    const given = raggedCase(mlaSpec(24, 8, { pageSize: 3 }), mixed, 1, 3);
    return expectEqualsReference(device, { ...given, batch: withPageLists(given) });
  });

  it.each([
    ["f16", "f16"],
    ["bf16", "f32"],
    ["f8e4m3", "f8e5m2"],
    ["i8", "bf16"],
    [{ kind: "grouped", bits: 4, groupSize: 8 }, "f16"],
    ["i8", "i8"],
  ] as const)("for ckv of %j and kpe of %j", (storage, valueStorage) =>
    expectEqualsReference(device, raggedCase(mlaSpec(24, 6, { storage, valueStorage }), few, 1, 3)),
  );

  it.each([1, 4])("for both parts in one row of pages of %i tokens", (pageSize) =>
    expectEqualsReference(device, raggedCase(mlaSpec(24, 6, { pageSize }), few), 1, fused(24, 6, pageSize)),
  );

  it.each([
    [512, 64, 128, 16],
    [48, 8, 16, 1],
    [40, 6, 16, 3],
  ])("for tokens of %i e4m3 codes and %i bf16 in one row", (rank, ropeDim, tile, pageSize) => {
    const storage = { kind: "tiled", tile } as const;
    const spec = mlaSpec(rank, ropeDim, { storage, valueStorage: "bf16", pageSize });
    return expectEqualsReference(device, raggedCase(spec, few, 1, 3), 1, fp8Tokens(rank, ropeDim, pageSize));
  });

  it.each<[string, Partial<AttentionSpec>]>([
    ["a window", { slidingWindow: 20 }],
    ["a soft cap", { softCap: 2 }],
    ["no causal mask", { causal: false }],
    ["the lse in base 2", { lseBase: "2" }],
    ["no lse", { returnLse: false }],
  ])("with %s, in any split", async (_what, changes) => {
    const given = { ...raggedCase(mlaSpec(20, 6, { splitSize: 32, ...changes }), mixed, 1, 3), kScale: 0.7, vScale: 2 };
    for (const threads of [1, 100]) await expectEqualsReference(device, given, threads);
  });

  it.each([
    ["halves", true],
    ["halves", false],
    ["interleaved", true],
  ] as const)("with kpe that are rotated when they are loaded, in %s, queries too: %s", async (style, queries) => {
    const rope = { style, dim: 6, offset: 20, queries };
    const given = raggedCase(mlaSpec(20, 6, { rope, splitSize: 32 }), mixed, 1, 3);
    const scaling = { type: "default" } as const;
    const table = new RopeTable({ headDim: 6, rotaryDim: 6, style, theta: 100, scaling });
    await expectEqualsReference(device, { ...given, ropeTable: table.rows(130) }, 100);
  });
});
