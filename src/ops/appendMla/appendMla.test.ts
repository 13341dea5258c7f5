import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { difference, makePool, movedTo, randomBytes } from "../../../test/ops/storedPages.ts";
import { normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { encodeFp8Tokens } from "../../attention/mla/index.ts";
import { f32ToF16 } from "../../tensor/index.ts";
import type { KvPages } from "../appendKv/index.ts";
import type { PageStorage } from "../attention/storage.ts";
import { getBatchIndicesPositions, slotMappingOf } from "../cacheUpdate/index.ts";
import { type AppendMlaSpec, appendMla, mlaTokenPages, recordAppendMla } from "./index.ts";

const tile128: PageStorage = { kind: "tiled", tile: 128 };
const slots = [9, 2, -1, 11, 0];

describe("mlaTokenPages", () => {
  it("has the fused cache of one type", () => {
    const spec: AppendMlaSpec = { kvLoraRank: 512, qkRopeHeadDim: 64, storage: "f16" };
    expect(mlaTokenPages(spec, { pointer: 64, numSlots: 12 })).toMatchObject({
      ckvPages: { pointer: 64, slotStride: 576 },
      kpePages: { pointer: 64 + 1024, slotStride: 576 },
    });
  });
  it("has FlashMLA's token of 656 bytes", () => {
    const spec: AppendMlaSpec = { kvLoraRank: 512, qkRopeHeadDim: 64, storage: tile128, ropeStorage: "bf16" };
    expect(mlaTokenPages(spec, { pointer: 0, numSlots: 12 })).toMatchObject({
      ckvPages: { pointer: 0, slotStride: 656, scales: { pointer: 512, slotStride: 164 } },
      kpePages: { pointer: 528, slotStride: 328 },
    });
  });
});

describe.each(Object.entries(testDevices))("appendMla on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  /** Appends with the device and with the definition; the bytes that both must have come back. */
  async function append(
    spec: AppendMlaSpec,
    numBytes: number,
    pages: { readonly ckvPages: KvPages; readonly kpePages?: KvPages },
    scale?: number,
  ): Promise<{ memory: Uint8Array; ckv: Float32Array; kpe: Float32Array }> {
    const { kvLoraRank, qkRopeHeadDim } = spec;
    const width = kvLoraRank + qkRopeHeadDim;
    // One matrix holds both, as a projection leaves them.
    const rows = normals(slots.length * width, width);
    const device = test.bytes([numBytes], "u8", randomBytes(numBytes, 3));
    const x = test.f32([slots.length, width], rows);
    await test.run((recorder) =>
      recordAppendMla(recorder, spec, {
        ckv: { ...x, shape: [slots.length, kvLoraRank], rowStride: width },
        ...(qkRopeHeadDim > 0 && {
          kpe: {
            pointer: x.pointer + kvLoraRank * 4,
            type: "f32",
            shape: [slots.length, qkRopeHeadDim],
            rowStride: width,
          },
        }),
        ckvPages: movedTo(device.pointer, pages.ckvPages),
        kpePages: pages.kpePages && movedTo(device.pointer, pages.kpePages),
        slotMapping: test.i32([slots.length], slots),
        scale,
      }),
    );
    const ckv = rows.filter((_, i) => i % width < kvLoraRank);
    const kpe = rows.filter((_, i) => i % width >= kvLoraRank);
    const memory = randomBytes(numBytes, 3);
    appendMla(memory, spec, { ckv, kpe }, slots, { ...pages, scale });
    expect(difference(test.readBytes(device), memory)).toBeUndefined();
    return { memory, ckv, kpe };
  }

  it.each([
    { kvLoraRank: 512, qkRopeHeadDim: 64, storage: "f16" },
    { kvLoraRank: 36, qkRopeHeadDim: 10, storage: "f32" },
    { kvLoraRank: 256, qkRopeHeadDim: 32, storage: "f8e4m3" },
    { kvLoraRank: 256, qkRopeHeadDim: 0, storage: "bf16" },
    { kvLoraRank: 64, qkRopeHeadDim: 16, storage: "i8", ropeStorage: "f16" },
  ] as const)("fills a fused cache and separate ones: %o", async (spec) => {
    const { kvLoraRank, qkRopeHeadDim, storage, ropeStorage = storage }: AppendMlaSpec = spec;
    const fused = mlaTokenPages(spec, { pointer: 0, numSlots: 12, pageSize: 4, tokenBytes: 2560 });
    await append(spec, 12 * 2560, fused, 1.7);
    const pool = (type: PageStorage, channels: number) =>
      makePool({ storage: type, layout: "slots first", numPages: 3, pageSize: 4, numHeads: 1, channels });
    const ckv = pool(storage, kvLoraRank);
    const kpe = qkRopeHeadDim > 0 ? pool(ropeStorage, qkRopeHeadDim) : undefined;
    await append(spec, ckv.numBytes + (kpe?.numBytes ?? 0), {
      ckvPages: ckv.k,
      kpePages: kpe && movedTo(ckv.numBytes, kpe.k),
    });
  });

  it.each(
    [[45], [4096], [45, 8, 25], [45, 8, 25, 22, 400]].flatMap((lengths) =>
      [1, 16, 64].map((pageSize) => ({ lengths, pageSize })),
    ),
  )("has FlashInfer's sequences of $lengths in pages of $pageSize", async ({ lengths, pageSize }) => {
    const spec = { kvLoraRank: 8, qkRopeHeadDim: 4, storage: "f16" } as const;
    const kvIndptr = [0];
    const appendIndptr = [0];
    for (const length of lengths) {
      kvIndptr.push((kvIndptr.at(-1) ?? 0) + Math.ceil(length / pageSize));
      appendIndptr.push((appendIndptr.at(-1) ?? 0) + length);
    }
    const numTokens = appendIndptr.at(-1) ?? 0;
    const numPages = (kvIndptr.at(-1) ?? 0) + 1;
    const kvIndices = Array.from({ length: numPages }, (_, i) => numPages - 1 - i);
    const places = getBatchIndicesPositions(appendIndptr, lengths, numTokens);
    const slotMapping = slotMappingOf(places, kvIndices, kvIndptr, pageSize);
    const [ckv, kpe] = [8, 4].map((channels) => normals(numTokens * channels, channels));
    const numBytes = numPages * pageSize * 24;
    const pages = mlaTokenPages(spec, { pointer: 0, numSlots: numPages * pageSize, pageSize });
    const device = test.bytes([numBytes], "u8", randomBytes(numBytes, 3));
    await test.run((recorder) =>
      recordAppendMla(recorder, spec, {
        ckv: test.f32([numTokens, 8], ckv),
        kpe: test.f32([numTokens, 4], kpe),
        ckvPages: movedTo(device.pointer, pages.ckvPages),
        kpePages: pages.kpePages && movedTo(device.pointer, pages.kpePages),
        slotMapping: test.i32([numTokens], slotMapping),
      }),
    );
    // Token by token: ckv and kpe side by side where the page table says.
    const memory = randomBytes(numBytes, 3);
    for (const [s, length] of lengths.entries()) {
      for (let t = 0; t < length; t++) {
        const slot = kvIndices[kvIndptr[s] + Math.floor(t / pageSize)] * pageSize + (t % pageSize);
        const row = appendIndptr[s] + t;
        const numbers = [...ckv.subarray(row * 8, row * 8 + 8), ...kpe.subarray(row * 4, row * 4 + 4)];
        memory.set(new Uint8Array(Uint16Array.from(numbers, f32ToF16).buffer), slot * 24);
      }
    }
    expect(difference(test.readBytes(device), memory)).toBeUndefined();
  });

  it("writes the bytes of FlashMLA's token", async () => {
    const spec = { kvLoraRank: 512, qkRopeHeadDim: 64, storage: tile128, ropeStorage: "bf16" } as const;
    const { memory, ckv, kpe } = await append(spec, 12 * 656, mlaTokenPages(spec, { pointer: 0, numSlots: 12 }));
    slots.forEach((slot, token) => {
      if (slot === -1) return;
      const row = [...ckv.subarray(token * 512, (token + 1) * 512), ...kpe.subarray(token * 64, (token + 1) * 64)];
      expect(difference(memory.subarray(slot * 656, (slot + 1) * 656), encodeFp8Tokens(spec, row))).toBeUndefined();
    });
  });

  it("names what is wrong", async () => {
    const spec: AppendMlaSpec = { kvLoraRank: 8, qkRopeHeadDim: 4, storage: "f32" };
    const ckv = test.f32([2, 8], new Float32Array(16));
    const slotMapping = test.i32([2], [0, 1]);
    const { ckvPages } = mlaTokenPages(spec, { pointer: ckv.pointer, numSlots: 2 });
    await expect(
      test.run((recorder) => recordAppendMla(recorder, spec, { ckv, ckvPages, slotMapping })),
    ).rejects.toThrow("kpe and kpePages must be given unless qkRopeHeadDim is 0");
    await expect(
      test.run((recorder) =>
        recordAppendMla(recorder, spec, { ckv: { ...ckv, shape: [2, 7] }, ckvPages, slotMapping }),
      ),
    ).rejects.toThrow("ckv must have rows of 8 elements");
  });
});
