import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { difference, movedTo, randomBytes, storages } from "../../../test/ops/storedPages.ts";
import { normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { f32FromF16, f32ToF16 } from "../../tensor/index.ts";
import type { KvPages } from "../appendKv/index.ts";
import { latentLayout, latentTableWords } from "../attention/latent.ts";
import { type PageStorage, rowElements, rowScales, storageBytes } from "../attention/storage.ts";
import { encodeRows } from "../attention/storageCodec.ts";
import {
  appendLatent,
  checkFlushes,
  flushWindow,
  recordAppendLatent,
  recordFlushWindow,
  windowPages,
  windowSlot,
} from "./index.ts";

const total = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);

/** Ranks of whole layers: one head a group, two, all; ranks that fill registers, and ranks that do not. */
const layers = [
  { numKvHeads: 4, ranksK: [32, 8, 1, 45], ranksV: [16, 64, 7, 33] },
  { numKvHeads: 6, ranksK: [24, 100, 13], ranksV: [40, 3, 128] },
  { numKvHeads: 2, ranksK: [96], ranksV: [160] },
] as const;

/** Pages of latents at the beginning of a memory, with scales in an array of their own or behind each token's rows. */
function latentPool(
  storage: PageStorage,
  ranks: readonly number[],
  at: number,
  { numSlots = 12, pageSize = 3, inline = false } = {},
): { pages: KvPages; numBytes: number } {
  const unit = storageBytes(storage);
  const units = total(ranks.map((rank) => rowElements(storage, rank)));
  const scales = total(ranks.map((rank) => rowScales(storage, rank)));
  const rowBytes = Math.ceil((units * unit) / 4) * 4;
  const tokenBytes = rowBytes + (inline ? scales * 4 : 0);
  const scalesAt = at + (inline ? rowBytes : numSlots * tokenBytes);
  const pages: KvPages = {
    pointer: at,
    type: storage,
    numSlots,
    pageSize,
    slotStride: tokenBytes / unit,
    ...(scales > 0 && { scales: { pointer: scalesAt, slotStride: inline ? tokenBytes / 4 : scales } }),
  };
  return { pages, numBytes: numSlots * (rowBytes + scales * 4) };
}

function layoutFor(layer: (typeof layers)[number], storage: PageStorage) {
  return latentLayout(layer, { numQHeads: layer.numKvHeads, numKvHeads: layer.numKvHeads, headDim: 64, storage });
}

const slots = [7, -1, 0, 11, 3];

describe.each(Object.entries(testDevices))("appendLatent on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(storages.map((storage) => [JSON.stringify(storage), storage] as const))(
    "writes each group as the codec does, as %s",
    async (_, storage) => {
      for (const layer of layers) {
        for (const inline of [false, true]) {
          const layout = layoutFor(layer, storage);
          const k = latentPool(storage, layer.ranksK, 0, { inline });
          const v = latentPool(storage, layer.ranksV, k.numBytes, { inline });
          const numBytes = k.numBytes + v.numBytes;
          const [keys, values] = [layer.ranksK, layer.ranksV].map((ranks, i) =>
            normals(slots.length * total(ranks), i + 1),
          );
          const device = test.bytes([numBytes], "u8", randomBytes(numBytes, 1));
          await test.run((recorder) =>
            recordAppendLatent(
              recorder,
              { storage },
              {
                k: test.f32([slots.length, total(layer.ranksK)], keys),
                v: test.f32([slots.length, total(layer.ranksV)], values),
                layout,
                table: test.i32([layout.table.length], layout.table).pointer,
                kPages: movedTo(device.pointer, k.pages),
                vPages: movedTo(device.pointer, v.pages),
                slotMapping: test.i32([slots.length], slots),
              },
            ),
          );
          const memory = randomBytes(numBytes, 1);
          appendLatent(memory, { storage, ranks: layer.ranksK, values: keys }, slots, k.pages);
          appendLatent(memory, { storage, ranks: layer.ranksV, values }, slots, v.pages);
          expect(difference(test.readBytes(device), memory)).toBeUndefined();
        }
      }
    },
  );

  it("puts each head's latents where the table of attention has them", async () => {
    const storage: PageStorage = { kind: "grouped", bits: 3, groupSize: 16 };
    const layer = layers[1];
    const layout = layoutFor(layer, storage);
    const { pages, numBytes } = latentPool(storage, layer.ranksK, 0);
    const keys = normals(total(layer.ranksK), 9);
    const memory = new Uint8Array(numBytes);
    appendLatent(memory, { storage, ranks: layer.ranksK, values: keys }, [0], pages);
    for (let head = 0; head < layer.numKvHeads; head++) {
      const group = head >> 1;
      const [rank, unitsAt, scalesAt] = layout.table.subarray(head * latentTableWords);
      expect(rank).toBe(layer.ranksK[group]);
      const first = total(layer.ranksK.slice(0, group));
      const { units, scales } = encodeRows(storage, keys.subarray(first, first + rank), rank);
      expect(difference(memory.subarray(unitsAt, unitsAt + units.length), units)).toBeUndefined();
      const stored = new Float32Array(memory.buffer, pages.scales?.pointer).subarray(scalesAt);
      expect(difference(stored.subarray(0, scales.length), scales)).toBeUndefined();
    }
  });

  it.each(["f32", "f16"] as const)("keeps recent tokens in %s windows and flushes them in any order", async (type) => {
    const layer = layers[0];
    const storage: PageStorage = { kind: "grouped", bits: 4, groupSize: 32 };
    const layout = layoutFor(layer, storage);
    const table = test.i32([layout.table.length], layout.table).pointer;
    const [capacity, numWindows, numTokens] = [5, 3, 8];
    const [widthK, widthV] = [total(layer.ranksK), total(layer.ranksV)];
    const [keys, values] = [normals(numTokens * widthK, 1), normals(numTokens * widthV, 2)];
    const elementBytes = storageBytes(type);
    const windowBytes = (width: number): number => numWindows * capacity * width * elementBytes;
    const windows = [widthK, widthV].map((width) =>
      test.bytes([windowBytes(width)], "u8", randomBytes(windowBytes(width), 4)),
    );
    const recent = { type, capacity, numWindows, recentK: windows[0].pointer, recentV: windows[1].pointer };
    // Window 2 takes tokens 3 to 7 of a sequence, window 0 the tokens 11 to 13 of another.
    const places = [3, 4, 5, 6, 7].map((t) => windowSlot(2, t, capacity));
    places.push(...[11, 12, 13].map((t) => windowSlot(0, t, capacity)));
    expect(places).toEqual([13, 14, 10, 11, 12, 1, 2, 3]);
    const [k, v] = [latentPool(storage, layer.ranksK, 0), latentPool(storage, layer.ranksV, 0)];
    const [kMemory, vMemory] = [k, v].map(({ numBytes }) => test.bytes([numBytes], "u8", randomBytes(numBytes, 6)));
    const flushes = [2, 3, 7, 0, 1, 2, 2, 0, 11, -1, 0, 0, 0, 5, 0, 3, 0, 0, 1, 0, 12];
    await test.run((recorder) => {
      const shared = { layout, table };
      recordAppendLatent(
        recorder,
        { storage: type },
        {
          ...shared,
          ...windowPages(recent),
          k: test.f32([numTokens, widthK], keys),
          v: test.f32([numTokens, widthV], values),
          slotMapping: test.i32([numTokens], places),
        },
      );
      recordFlushWindow(
        recorder,
        { storage },
        {
          ...shared,
          recent,
          flushes: test.i32([flushes.length / 3, 3], flushes),
          kPages: movedTo(kMemory.pointer, k.pages),
          vPages: movedTo(vMemory.pointer, v.pages),
        },
      );
    });
    for (const [part, ranks, rows, pool, memory] of [
      [0, layer.ranksK, keys, k, kMemory],
      [1, layer.ranksV, values, v, vMemory],
    ] as const) {
      const width = total(ranks);
      const window = randomBytes(windowBytes(width), 4);
      const kept = type === "f16" ? f32FromF16(Uint16Array.from(rows, f32ToF16)) : rows;
      const encoded = type === "f16" ? Uint16Array.from(rows, f32ToF16) : rows;
      places.forEach((place, token) => {
        const row = encoded.slice(token * width, (token + 1) * width);
        window.set(new Uint8Array(row.buffer), place * width * elementBytes);
      });
      expect(difference(test.readBytes(windows[part]), window)).toBeUndefined();
      const tokens = new Float32Array(numWindows * capacity * width);
      for (const [token, place] of places.entries()) {
        tokens.set(kept.subarray(token * width, (token + 1) * width), place * width);
      }
      const want = randomBytes(pool.numBytes, 6);
      // The other entries name a window, a place or a slot that there is not.
      flushWindow(want, { storage, ranks, values: tokens }, capacity, flushes.slice(0, 9), pool.pages);
      expect(difference(test.readBytes(memory), want)).toBeUndefined();
    }
  });

  it("names what is wrong", async () => {
    const layout = layoutFor(layers[2], "f32");
    const x = test.f32([2, 96], new Float32Array(192));
    const v = test.f32([2, 160], new Float32Array(320));
    const { pages } = latentPool("f32", [96], x.pointer, { numSlots: 2, pageSize: 2 });
    const args = { k: x, v, layout, table: 0, kPages: pages, vPages: { ...pages, slotStride: 160 } };
    const slotMapping = test.i32([2], [0, 1]);
    const record = (changed: object) =>
      test.run((recorder) => recordAppendLatent(recorder, { storage: "f32" }, { ...args, slotMapping, ...changed }));
    await expect(record({ k: v })).rejects.toThrow("k must have rows of 96 elements, got shape [2, 160]");
    await expect(record({ vPages: pages })).rejects.toThrow("vPages.slotStride must be at least 160");
    await expect(record({ vPages: { ...pages, slotStride: 160, numSlots: 4 } })).rejects.toThrow(
      "vPages.numSlots must be that of kPages, 2, got 4",
    );
    await expect(record({ layout: { ...layout, ranksK: [2048] } })).rejects.toThrow(
      "layout.ranksK[0] must be at most 1024, got 2048",
    );
    const recent = { type: "f32", capacity: 4, numWindows: 1, recentK: x.pointer, recentV: x.pointer } as const;
    await expect(
      test.run((recorder) =>
        recordFlushWindow(recorder, { storage: "f32" }, { ...args, recent, flushes: slotMapping }),
      ),
    ).rejects.toThrow("flushes must have shape [at least 2, 3], got [2]");
    await expect(
      test.run((recorder) => recordFlushWindow(recorder, { storage: "f32" }, { ...args, recent, flushes: x })),
    ).rejects.toThrow("flushes must be of type i32, got f32");
    const halves = { ...recent, type: "bf16" as "f16" };
    const flushes = test.i32([1, 3], [0, 0, 0]);
    await expect(
      test.run((recorder) => recordFlushWindow(recorder, { storage: "f32" }, { ...args, recent: halves, flushes })),
    ).rejects.toThrow("recent.type must be f32 or f16, got bf16");
  });
});

it("finds flushes that are none on the host", () => {
  const windows = { capacity: 4, numWindows: 2 };
  expect(() => checkFlushes([0, 3, 5, 1, 0, 4], 2, windows, 6)).not.toThrow();
  expect(() => checkFlushes([2, 0, 0], 1, windows, 6)).toThrow("flushes[0][0] = 2 is not a window: there are 2");
  expect(() => checkFlushes([0, 4, 0], 1, windows, 6)).toThrow("flushes[0][1] = 4 is not a slot of a window");
  expect(() => checkFlushes([0, 0, 6], 1, windows, 6)).toThrow("flushes[0][2] = 6 is not a slot: there are 6");
  expect(() => checkFlushes([0, 0, 1, 1, 0, 1], 2, windows, 6)).toThrow("flushes[1] writes slot 1, which another");
});
