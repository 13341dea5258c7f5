/**
 * Speed of ragged paged attention on the CPU device, decode and prefill: operations a second (two for each multiply-add of the two
 * products) beside what the same kernel language reaches in registers alone, measured turn by turn, and the bytes of keys and values read.
 */

import { CpuDevice } from "../src/devices/index.ts";
import {
  type AttentionBatch,
  type AttentionSpec,
  CpuAttentionPlan,
  recordAttention,
} from "../src/ops/attention/index.ts";
import { ComputePeak } from "./limits.ts";
import { type Bench, type Cell, type Spread, spread } from "./result.ts";

const ROUND_MS = 400;
const LEAST_ROUNDS = 5;
const PAGE_SIZE = 16;

interface AttentionTime {
  readonly microseconds: Spread;
  /** At the median. */
  readonly gigaflops: number;
  readonly gigabytesPerSecond: number;
  /** Multiply-adds in registers, all threads, at the median of the same rounds. */
  readonly peakGigaflops: number;
}

interface Scenario {
  readonly name: string;
  readonly numQHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly storage: AttentionSpec["storage"];
  readonly sequences: readonly { readonly queryLen: number; readonly kvLen: number }[];
}

const repeat = (count: number, queryLen: number, kvLen: number) =>
  Array.from({ length: count }, () => ({ queryLen, kvLen }));
const heads = { numQHeads: 8, numKvHeads: 2, headDim: 128 };
const gemma = { numQHeads: 4, numKvHeads: 1, headDim: 256 };

const scenarios: readonly Scenario[] = [
  { name: "decode, 1 of 256", ...gemma, storage: "f16", sequences: repeat(1, 1, 256) },
  { name: "decode, 16 of 256", ...gemma, storage: "f32", sequences: repeat(16, 1, 256) },
  { name: "decode, 16 of 256", ...gemma, storage: "f16", sequences: repeat(16, 1, 256) },
  { name: "decode, 1 of 4096", ...heads, storage: "f32", sequences: repeat(1, 1, 4096) },
  { name: "decode, 1 of 4096", ...heads, storage: "f16", sequences: repeat(1, 1, 4096) },
  { name: "decode, 16 of 4096", ...heads, storage: "f32", sequences: repeat(16, 1, 4096) },
  { name: "decode, 16 of 4096", ...heads, storage: "f16", sequences: repeat(16, 1, 4096) },
  { name: "prefill of 16 after 240", ...heads, storage: "f16", sequences: repeat(1, 16, 256) },
  { name: "prefill of 512", ...gemma, storage: "f16", sequences: repeat(1, 512, 512) },
  { name: "prefill of 512", ...heads, storage: "f32", sequences: repeat(1, 512, 512) },
  { name: "prefill of 512", ...heads, storage: "f16", sequences: repeat(1, 512, 512) },
];

async function measure(device: CpuDevice, scenario: Scenario): Promise<AttentionTime> {
  const { numQHeads, numKvHeads, headDim, storage, sequences } = scenario;
  const spec: AttentionSpec = {
    numQHeads,
    numKvHeads,
    headDim,
    storage,
    pageSize: PAGE_SIZE,
    causal: true,
    smScale: headDim ** -0.5,
  };
  const batch = batchOf(sequences);
  const elementBytes = storage === "f32" ? 4 : 2;
  const poolBytes = batch.numPages * PAGE_SIZE * numKvHeads * headDim * elementBytes;
  const rowBytes = batch.numRows * numQHeads * headDim * 4;
  const buffers = [poolBytes, poolBytes, rowBytes, rowBytes].map((numBytes) => device.allocate(numBytes, "bench"));
  const [k, v, q, out] = buffers;
  // 0x3c3c: about 1 as a half, about 0.01 as a float.
  for (const pages of [k, v]) device.u8(pages).fill(0x3c);
  device.f32(q).forEach((_, i, all) => {
    all[i] = Math.sin(i);
  });

  const plan = new CpuAttentionPlan(device, spec);
  plan.update(batch);
  const commands = device.commands();
  recordAttention({ device, commands }, plan, { q: q.pointer, kPages: k.pointer, vPages: v.pointer, out: out.pointer });
  const peak = new ComputePeak(device);
  await peak.warm("f32");

  await device.run(commands);
  const times: number[] = [];
  const peaks: number[] = [];
  for (const end = performance.now() + ROUND_MS; performance.now() < end || times.length < LEAST_ROUNDS; ) {
    peaks.push(...(await peak.measure("f32", 1)));
    const start = performance.now();
    await device.run(commands);
    times.push((performance.now() - start) * 1000);
  }
  commands.free();
  peak.free();
  plan.release();
  for (const buffer of buffers) device.free(buffer);

  const pairs = sequences.reduce(
    (sum, { queryLen, kvLen }) => sum + queryLen * kvLen - (queryLen * (queryLen - 1)) / 2,
    0,
  );
  const numKeys = sequences.reduce((sum, { kvLen }) => sum + kvLen, 0);
  const microseconds = spread(times);
  const { median } = microseconds;
  return {
    microseconds,
    gigaflops: (4 * pairs * numQHeads * headDim) / median / 1000,
    gigabytesPerSecond: (2 * numKeys * numKvHeads * headDim * elementBytes) / median / 1000,
    peakGigaflops: spread(peaks).median * device.threads,
  };
}

/** Neighbouring pages of a sequence are far apart, as in a pool in use. */
function batchOf(sequences: Scenario["sequences"]): AttentionBatch {
  const pagesOf = sequences.map(({ kvLen }) => Math.ceil(kvLen / PAGE_SIZE));
  const numPages = pagesOf.reduce((a, b) => a + b, 0);
  const maxPages = Math.max(...pagesOf);
  const blockTables = new Int32Array(sequences.length * maxPages);
  const queryIndptr = new Int32Array(sequences.length + 1);
  let nextPage = 0;
  for (const [s, { queryLen }] of sequences.entries()) {
    queryIndptr[s + 1] = queryIndptr[s] + queryLen;
    for (let j = 0; j < pagesOf[s]; j++) blockTables[s * maxPages + j] = (nextPage++ * 7919) % numPages;
  }
  return {
    numRows: queryIndptr[sequences.length],
    numSeqs: sequences.length,
    queryIndptr,
    kvLens: Int32Array.from(sequences, ({ kvLen }) => kvLen),
    blockTables,
    maxPages,
    numPages,
  };
}

const shapeOf = ({ numQHeads, numKvHeads, headDim, storage }: Scenario): string =>
  `${numQHeads}/${numKvHeads} x ${headDim} ${storage}`;

export const attention: Bench = {
  name: "attention",
  summary: "ragged paged attention, decode and prefill",
  async run({ threads }) {
    const rows: Cell[][] = [];
    for (const count of threads) {
      const device = await CpuDevice.create({ threads: count });
      for (const scenario of scenarios) {
        const { gigaflops, peakGigaflops, gigabytesPerSecond, microseconds } = await measure(device, scenario);
        const figures = [gigaflops, peakGigaflops, gigaflops / peakGigaflops, gigabytesPerSecond, microseconds];
        rows.push([scenario.name, shapeOf(scenario), count, ...figures]);
      }
      await device.close();
    }
    return {
      name: "attention",
      about:
        "Ragged paged attention, pages of 16 tokens scattered over the pool. GFLOP/s count two operations for each multiply-add of the two products; the f32 multiply-add peak of all threads is measured turn by turn with it. GB/s are of the keys and values; those of short contexts lie in the caches.",
      tables: [
        {
          title: "Attention",
          columns: ["", "query/key heads x dimension", "threads", "GFLOP/s", "peak", "of peak", "GB/s", "µs"],
          rows,
        },
      ],
      remarks: [],
    };
  },
};
