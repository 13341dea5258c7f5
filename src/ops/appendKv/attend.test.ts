/** What an append writes, attention reads: every storage type in every layout, by one description of the pages. */
import { afterAll, afterEach, beforeAll, describe, it } from "vitest";
import { expectNear } from "../../../test/fixtures/attention/equalsReference.ts";
import { defaultSpec, onDevice, onReference, raggedCase } from "../../../test/fixtures/attention/ragged.ts";
import { layouts, makePool, movedTo, storages } from "../../../test/ops/storedPages.ts";
import { type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { attentionPages, headRows, recordAppendKv } from "./index.ts";

const pageSize = 4;
const lengths = [
  { queryLen: 1, kvLen: 37 },
  { queryLen: 5, kvLen: 8 },
  { queryLen: 0, kvLen: 0 },
];

describe.each(Object.entries(testDevices))("on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(storages.map((storage) => [JSON.stringify(storage), storage] as const))(
    "attention reads appended pages of %s",
    async (_, storage) => {
      const [numKvHeads, headDim] = [2, 40];
      const given = raggedCase(defaultSpec({ storage, numKvHeads, headDim, pageSize }), lengths);
      const want = onReference(given);
      const { blockTables, maxPages, numPages } = given.batch;
      const slots = lengths.flatMap(({ kvLen }, s) =>
        Array.from({ length: kvLen }, (_, t) => {
          return blockTables[s * maxPages + Math.floor(t / pageSize)] * pageSize + (t % pageSize);
        }),
      );
      const rowLength = numKvHeads * headDim;
      const rows = (pages: Float32Array): Float32Array =>
        Float32Array.from(slots.flatMap((slot) => [...pages.subarray(slot * rowLength, (slot + 1) * rowLength)]));
      for (const layout of layouts) {
        const pool = makePool({ storage, layout, numPages, pageSize, numHeads: numKvHeads, channels: headDim });
        // Of all ones: NaN in every float type, and as a scale.
        const { pointer } = test.bytes([pool.numBytes], "u8", new Uint8Array(pool.numBytes).fill(0xff));
        const [kPages, vPages] = [movedTo(pointer, pool.k), movedTo(pointer, pool.v)];
        await test.run((recorder) =>
          recordAppendKv(
            recorder,
            { numKvHeads, headDim, storage },
            {
              k: test.f32([slots.length, rowLength], rows(given.kPages)),
              v: test.f32([slots.length, rowLength], rows(given.vPages)),
              kPages,
              vPages,
              slotMapping: test.i32([slots.length], slots),
            },
          ),
        );
        const [k, v] = [kPages, vPages].map((pages) => attentionPages(headRows(storage, numKvHeads, headDim), pages));
        const got = await onDevice(test.device, given, 2, () => ({
          kPages: k.pages,
          kStrides: k.strides,
          kScales: k.scales,
          kScaleStrides: k.scaleStrides,
          vPages: v.pages,
          vStrides: v.strides,
          vScales: v.scales,
          vScaleStrides: v.scaleStrides,
        }));
        expectNear(got, want);
      }
    },
  );
});
