import { afterAll, beforeAll, describe, it } from "vitest";
import { expectEqualsReference, mixed } from "../../../test/fixtures/attention/equalsReference.ts";
import { defaultSpec, type RaggedCase, raggedCase } from "../../../test/fixtures/attention/ragged.ts";
import { type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import type { CpuDevice } from "../../devices/index.ts";
import { RopeTable } from "../rope/index.ts";
import type { AttentionSpec, KeyRopeSpec } from "./contract.ts";

/** A case with its table, NaN at every position that no token has. */
function rotated(rope: KeyRopeSpec, offsets?: readonly number[], changes: Partial<AttentionSpec> = {}): RaggedCase {
  const given = raggedCase(defaultSpec({ rope, splitSize: 32, ...changes }), mixed, 1, 3);
  const { style, dim } = rope;
  const rows = new RopeTable({ headDim: dim, rotaryDim: dim, style, theta: 500, scaling: { type: "default" } });
  const numPositions = 140 + Math.max(0, ...(offsets ?? []));
  const table = rows.rows(numPositions);
  const used = new Set(
    mixed.flatMap(({ kvLen }, s) => Array.from({ length: kvLen }, (_, t) => t + (offsets?.[s] ?? 0))),
  );
  for (let position = 0; position < numPositions; position++) {
    if (!used.has(position)) table.fill(Number.NaN, position * dim, (position + 1) * dim);
  }
  const positionOffsets = offsets && Int32Array.from(offsets);
  return { ...given, batch: { ...given.batch, positionOffsets }, ropeTable: table };
}

describe.each(Object.entries(testDevices))("keys rotated on load equal the reference on a %s", (_name, create) => {
  let test: TestDevice;
  let device: CpuDevice;
  beforeAll(async () => {
    test = await create();
    device = test.device;
  });
  afterAll(() => test.close());

  it.each<KeyRopeSpec>([
    { style: "halves", dim: 16 },
    { style: "interleaved", dim: 16 },
    { style: "halves", dim: 6 },
    { style: "interleaved", dim: 6, offset: 3 },
    { style: "halves", dim: 2, offset: 14 },
    { style: "halves", dim: 10, offset: 5 },
  ])("for channels %j, of keys alone and of queries too", async (rope) => {
    for (const queries of [false, true]) {
      await expectEqualsReference(device, rotated({ ...rope, queries }), 100);
    }
  });

  it("for sequences that begin at other positions", () =>
    expectEqualsReference(
      device,
      rotated({ style: "halves", dim: 8, queries: true }, [5000, 3, 0, 77, 1, 60000, 9, 300]),
      100,
    ));

  it("for queries before the first key, in one tile with others", () => {
    const given = rotated({ style: "halves", dim: 8, queries: true });
    // All queries but the last three have lost their keys.
    const kvLens = given.batch.kvLens.map((kvLen, s) => Math.min(kvLen, mixed[s]?.queryLen > 3 ? 3 : kvLen));
    return expectEqualsReference(device, { ...given, batch: { ...given.batch, kvLens, allowUnseeing: true } }, 100);
  });

  it.each<[string, Partial<AttentionSpec>]>([
    ["quantised keys in contiguous rows", { storage: "i8", pageSize: undefined }],
    ["an odd head dimension", { headDim: 23, headDimV: 9 }],
    ["a window", { slidingWindow: 11 }],
    ["no causal mask", { causal: false }],
  ])("with %s", (_what, changes) =>
    expectEqualsReference(device, rotated({ style: "interleaved", dim: 12, queries: true }, undefined, changes), 100),
  );
});
