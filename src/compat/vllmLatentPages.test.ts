import { describe, expect, it } from "vitest";
import { keyPagesFromVllm, keyPagesToVllm, valuePagesFromVllm, valuePagesToVllm } from "./vllmLatentPages.ts";

describe("vLLM's latent cache", () => {
  it("becomes pages of tokens, element by element", () => {
    // 2 blocks of 3 tokens, 2 heads, rank 8: f32 has 4 elements in 16 bytes. An element's value says where it belongs.
    const blocks = { numBlocks: 2, blockSize: 3, numKvHeads: 2, rank: 8 };
    const name = (block: number, t: number, head: number, c: number): number => 1000 * block + 100 * t + 10 * head + c;
    const keys = new Float32Array(96);
    const values = new Float32Array(96);
    const pages = new Float32Array(96);
    for (let b = 0; b < 2; b++) {
      for (let t = 0; t < 3; t++) {
        for (let h = 0; h < 2; h++) {
          for (let c = 0; c < 8; c++) {
            keys[(((b * 2 + h) * 2 + (c >> 2)) * 3 + t) * 4 + (c & 3)] = name(b, t, h, c);
            values[((b * 2 + h) * 8 + c) * 3 + t] = name(b, t, h, c);
            pages[((b * 3 + t) * 2 + h) * 8 + c] = name(b, t, h, c);
          }
        }
      }
    }
    expect(keyPagesFromVllm(keys, blocks)).toEqual(pages);
    expect(valuePagesFromVllm(values, blocks)).toEqual(pages);
    expect(keyPagesToVllm(pages, blocks)).toEqual(keys);
    expect(valuePagesToVllm(pages, blocks)).toEqual(values);
  });

  it.each([Float32Array, Uint16Array, Uint8Array])("comes back from pages, for elements of %o", (Elements) => {
    const blocks = { numBlocks: 3, blockSize: 5, numKvHeads: 2, rank: 48 };
    const cache = new Elements(3 * 5 * 2 * 48).map((_, i) => (i * 7919) % 251);
    expect(keyPagesToVllm(keyPagesFromVllm(cache, blocks), blocks)).toEqual(cache);
    expect(valuePagesToVllm(valuePagesFromVllm(cache, blocks), blocks)).toEqual(cache);
  });

  it.each([
    [Uint16Array, 20, 8],
    [Uint16Array, 12, 8],
    [Uint16Array, 15, 8],
    [Uint8Array, 24, 16],
    [Float32Array, 30, 4],
  ])("cannot hold in %o keys of rank %i: no multiple of x = %i", (Elements, rank, x) => {
    const blocks = { numBlocks: 1, blockSize: 2, numKvHeads: 1, rank };
    const message = `rank = ${rank} must be a multiple of x = ${x}: vLLM's key layout cannot hold others`;
    expect(() => keyPagesFromVllm(new Elements(2 * rank), blocks)).toThrow(message);
    expect(() => keyPagesToVllm(new Elements(2 * rank), blocks)).toThrow(message);
    expect(valuePagesFromVllm(new Elements(2 * rank), blocks)).toHaveLength(2 * rank);
  });

  it("names the number of elements it should have", () => {
    const blocks = { numBlocks: 2, blockSize: 4, numKvHeads: 1, rank: 8 };
    expect(() => valuePagesFromVllm(new Float32Array(63), blocks)).toThrow(
      "the cache must have 2 blocks * 4 * 1 * 8 = 64 elements, got 63",
    );
  });
});
