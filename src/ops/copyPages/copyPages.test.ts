import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { copyPages, recordCopyPages } from "./index.ts";

it("copies pages by its definition", () => {
  const pages = Float64Array.of(1, 2, 3, 4, 5, 6);
  copyPages(pages, 2, [0, 2]);
  expect([...pages]).toEqual([1, 2, 3, 4, 1, 2]);
});

describe.each(Object.entries(testDevices))("copyPages on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it("equals the reference in every buffer, whatever its page size", async () => {
    const numPages = 9;
    const copies = [0, 5, 0, 7, 3, 1];
    const pageLengths = [1, 6, 64, 4097, 3 * 4096];
    const before = pageLengths.map((length) => normals(numPages * length, length));
    const tensors = before.map((values) => test.f32([values.length], values));
    const buffers = tensors.map(({ pointer }, i) => ({ pointer, pageBytes: pageLengths[i] * 4, numPages }));
    await test.run((recorder) => {
      const onDevice = test.i32([3, 2], copies);
      recordCopyPages(recorder, { copies: onDevice, copiesOnHost: copies, numCopies: 3, buffers });
    });
    tensors.forEach((tensor, i) => {
      copyPages(before[i], pageLengths[i], copies);
      expect(test.readF32(tensor)).toEqual(before[i]);
    });
  });

  it("copies as many as it is told, none included", async () => {
    const copies = [0, 1, 0, 2];
    const pages = test.f32([3], [1, 2, 3]);
    const buffers = [{ pointer: pages.pointer, pageBytes: 4, numPages: 3 }];
    const onDevice = test.i32([2, 2], copies);
    for (const [numCopies, expected] of [
      [0, [1, 2, 3]],
      [1, [1, 1, 3]],
    ] as const) {
      await test.run((recorder) =>
        recordCopyPages(recorder, { copies: onDevice, copiesOnHost: copies, numCopies, buffers }),
      );
      expect([...test.readF32(pages)]).toEqual(expected);
    }
  });

  it("names what is wrong", async () => {
    const buffer = { pointer: 0, pageBytes: 8, numPages: 4 };
    const record =
      (copies: number[], changed: object = {}) =>
      () =>
        test.run((recorder) => {
          const onDevice = test.i32([copies.length / 2, 2], copies);
          recordCopyPages(recorder, {
            copies: onDevice,
            copiesOnHost: copies,
            numCopies: copies.length / 2,
            buffers: [buffer],
            ...changed,
          });
        });
    await expect(record([0, 4])).rejects.toThrow("copies[0] writes page 4, which is not a page: the pool has 4");
    await expect(record([0, 1, -1, 2])).rejects.toThrow("copies[1] reads page -1, which is not a page: the pool has 4");
    await expect(record([0, 1, 2, 1])).rejects.toThrow("copies[1] writes page 1, which another copy writes too");
    await expect(record([0, 1, 1, 2])).rejects.toThrow("copies both read and write page 1");
    await expect(record([2, 2])).rejects.toThrow("copies both read and write page 2");
    await expect(record([0, 1], { numCopies: 2 })).rejects.toThrow(
      "copies must have shape [at least 2, 2], got [1, 2]",
    );
    await expect(record([0, 1], { buffers: [{ ...buffer, pageBytes: 6 }] })).rejects.toThrow(
      "buffers[0].pageBytes must be a multiple of 4 bytes, got 6",
    );
  });
});
