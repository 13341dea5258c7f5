import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { bits, defaultSpec, type Lengths, onDevice, raggedCase } from "../../../test/fixtures/attention/ragged.ts";
import { CpuDevice } from "../../devices/index.ts";
import type { AttentionSpec } from "./contract.ts";

let devices: CpuDevice[];
beforeAll(async () => {
  devices = await Promise.all([1, 3].map((threads) => CpuDevice.create({ threads })));
});
afterAll(async () => {
  await Promise.all(devices.map((device) => device.close()));
});

/** The bits of out and lse of the tokens of sequence 0, by position. */
async function tokensOf(spec: AttentionSpec, lengths: readonly Lengths[], device: CpuDevice, planThreads: number) {
  const { out, lse } = await onDevice(device, raggedCase(spec, lengths), planThreads);
  const [{ queryLen, kvLen }] = lengths;
  const rowSize = spec.numQHeads * spec.headDim;
  const hex = (values: Float32Array): string => bits(values).reduce((text, word) => `${text}${word.toString(16)} `, "");
  return Array.from({ length: queryLen }, (_, i): [number, string] => [
    kvLen - queryLen + i,
    hex(out.subarray(i * rowSize, (i + 1) * rowSize)) + hex(lse.subarray(i * spec.numQHeads, (i + 1) * spec.numQHeads)),
  ]);
}

describe("a token's result has the same bits", () => {
  const others: readonly Lengths[] = [
    { queryLen: 40, kvLen: 40 },
    { queryLen: 1, kvLen: 77 },
    { queryLen: 0, kvLen: 0 },
    { queryLen: 9, kvLen: 300 },
  ];
  it.each([
    ["grouped queries", defaultSpec({ splitSize: 64 })],
    ["a group of 5 and head dimension 40", defaultSpec({ numQHeads: 5, numKvHeads: 1, headDim: 40, splitSize: 32 })],
    ["one query head a key/value head", defaultSpec({ numQHeads: 2, splitSize: 64 })],
    ["a sliding window", defaultSpec({ slidingWindow: 50, splitSize: 32 })],
    ["f16 pages and a soft cap", defaultSpec({ storage: "f16", softCap: 4, splitSize: 64, pageSize: 5 })],
    ["no causal mask", defaultSpec({ causal: false, splitSize: 64 })],
  ])("in any chunking, company, split and number of threads: %s", async (_, spec) => {
    const total = 150;
    const seen = new Map<number, string>();
    const meet = async (lengths: readonly Lengths[], device: CpuDevice, planThreads: number): Promise<void> => {
      for (const [position, result] of await tokensOf(spec, lengths, device, planThreads)) {
        expect(`${position}: ${result}`).toBe(`${position}: ${seen.get(position) ?? result}`);
        seen.set(position, result);
      }
    };
    // Without a causal mask a token's keys are those of the whole sequence, so only the split can vary.
    const whole = [{ queryLen: total, kvLen: total }];
    for (const device of devices) {
      for (const planThreads of [1, 4, 1000]) {
        await meet(whole, device, planThreads);
        await meet([...whole, ...others], device, planThreads);
        await meet([{ queryLen: 1, kvLen: total }], device, planThreads);
        if (!spec.causal) continue;
        for (let end = 37; end < total; end += 37) await meet([{ queryLen: 37, kvLen: end }], device, planThreads);
      }
      if (!spec.causal) continue;
      for (let end = 1; end <= total; end += 7) await meet([{ queryLen: 1, kvLen: end }, ...others], device, 1000);
    }
    expect(seen.size).toBe(total);
  });
});
