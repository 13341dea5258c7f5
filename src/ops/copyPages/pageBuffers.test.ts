import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { layouts, makePool, movedTo, randomBytes, storages } from "../../../test/ops/storedPages.ts";
import { type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { checkPages, headRows, type KvPages, type SlotRows } from "../appendKv/pages.ts";
import { storageBytes } from "../attention/storage.ts";
import { pageBuffers, recordCopyPages } from "./index.ts";

/** The bytes of a slot: codes and scales of all heads. */
function bytesOfSlot(memory: Uint8Array, rows: SlotRows, pages: KvPages, slot: number): number[] {
  const { pageSize, scales, ...codes } = checkPages("pages", rows, pages);
  return [
    { at: codes, numBytes: rows.units * storageBytes(rows.storage) },
    { at: scales, numBytes: rows.scales * 4 },
  ].flatMap(({ at, numBytes }) =>
    Array.from({ length: rows.numHeads }, (_, head) => {
      const page = Math.floor(slot / pageSize);
      const from = at.pointer + page * at.pageBytes + (slot % pageSize) * at.slotBytes + head * at.headBytes;
      return [...memory.subarray(from, from + numBytes)];
    }).flat(),
  );
}

describe.each(Object.entries(testDevices))("a copy of stored pages on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(storages.map((storage) => [JSON.stringify(storage), storage] as const))(
    "takes codes and scales along, as %s",
    async (_, storage) => {
      const [numHeads, channels, pageSize, numPages] = [2, 40, 4, 5];
      const rows = headRows(storage, numHeads, channels);
      for (const layout of layouts) {
        const pool = makePool({ storage, layout, numPages, pageSize, numHeads, channels });
        const before = randomBytes(pool.numBytes, 1);
        const device = test.bytes([pool.numBytes], "u8", before);
        const copies = [3, 1];
        await test.run((recorder) => {
          const parts = [pool.v, pool.k].map((pages) => ({ rows, pages: movedTo(device.pointer, pages) }));
          recordCopyPages(recorder, {
            copies: test.i32([1, 2], copies),
            copiesOnHost: copies,
            numCopies: 1,
            buffers: pageBuffers(parts),
          });
        });
        const after = test.readBytes(device);
        for (const pages of [pool.k, pool.v]) {
          for (let slot = 0; slot < numPages * pageSize; slot++) {
            const isCopy = Math.floor(slot / pageSize) === 1;
            const want = bytesOfSlot(before, rows, pages, isCopy ? slot + 2 * pageSize : slot);
            expect(bytesOfSlot(after, rows, pages, slot)).toEqual(want);
          }
        }
      }
    },
  );
});

describe("pageBuffers", () => {
  const rows = headRows("i8", 2, 32);

  it("has one buffer for what lies in one page, and one for every array that lies apart", () => {
    const shape = { storage: "i8", numPages: 3, pageSize: 4, numHeads: 2, channels: 32 } as const;
    const buffersOf = (layout: (typeof layouts)[number]) => {
      const { k, v } = makePool({ ...shape, layout });
      return pageBuffers([
        { rows, pages: k },
        { rows, pages: v },
      ]);
    };
    expect(buffersOf("in turn, scales inside")).toEqual([{ pointer: 0, pageBytes: 4 * 2 * 2 * 36, numPages: 3 }]);
    expect(buffersOf("slots first")).toEqual([
      { pointer: 0, pageBytes: 256, numPages: 3 },
      { pointer: 768, pageBytes: 32, numPages: 3 },
      { pointer: 864, pageBytes: 256, numPages: 3 },
      { pointer: 864 + 768, pageBytes: 32, numPages: 3 },
    ]);
  });

  it("refuses pages without a page size", () => {
    const pages: KvPages = { pointer: 0, type: "i8", numSlots: 12, scales: { pointer: 4096 } };
    expect(() => pageBuffers([{ rows, pages }])).toThrow("parts[0].pages.pageSize must be given to copy pages");
  });
});
