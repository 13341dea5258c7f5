/**
 * Speed of ragged paged attention on the CPU device, decode and prefill: operations a second (two for each multiply-add of the two
 * products) beside what the same kernel language reaches in registers alone, measured turn by turn, and the bytes of keys and values read.
 *
 *     node bench/attention.ts [threads...]
 */

import { pathToFileURL } from "node:url";
import { CpuDevice } from "../src/devices/index.ts";
import { defineKernel } from "../src/kernels/index.ts";
import {
  type AttentionBatch,
  type AttentionSpec,
  CpuAttentionPlan,
  recordAttention,
} from "../src/ops/attention/index.ts";

const ROUND_MS = 600;
const PAGE_SIZE = 16;

export interface AttentionRow {
  readonly name: string;
  /** Query and key/value heads, head dimension, storage of the pages. */
  readonly shape: string;
  readonly threads: number;
  readonly microseconds: { readonly median: number; readonly min: number };
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

/** Ten independent chains of multiply-adds: more than the units' latency, fewer than the registers. */
const NUM_CHAINS = 10;
const PEAK_STEPS = 1000;
const PEAK_TASKS = 32;
const peakKernel = defineKernel({
  name: "multiplyAddPeak",
  params: { out: "pointer" },
  build(k, _spec: object, p) {
    k.forTasks((task) => {
      const chains = Array.from({ length: NUM_CHAINS }, () => k.var("f32v", 0));
      const factor = k.let(k.load("f32v", p.out));
      const step = k.let(k.load("f32v", p.out, k.lanes * 4));
      k.for(0, PEAK_STEPS, 1, () => {
        for (const chain of chains) chain.set(factor.fma(step, chain.value));
      });
      const out = k.let(p.out.add(task.mul(NUM_CHAINS * k.lanes * 4)));
      for (const [i, chain] of chains.entries()) k.store("f32v", out, chain.value, i * k.lanes * 4);
    });
  },
});

async function measure(device: CpuDevice, scenario: Scenario): Promise<AttentionRow> {
  const { name, numQHeads, numKvHeads, headDim, storage, sequences } = scenario;
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
  const peakBytes = PEAK_TASKS * NUM_CHAINS * 64;
  const buffers = [poolBytes, poolBytes, rowBytes, rowBytes, peakBytes].map((numBytes) =>
    device.allocate(numBytes, "bench"),
  );
  const [k, v, q, out, peakOut] = buffers;
  // 0x3c3c: about 1 as a half, about 0.01 as a float.
  for (const pages of [k, v]) device.u8(pages).fill(0x3c);
  device.f32(q).forEach((_, i, all) => {
    all[i] = Math.sin(i);
  });

  const plan = new CpuAttentionPlan(device, spec);
  plan.update(batch);
  const commands = device.commands();
  recordAttention({ device, commands }, plan, { q: q.pointer, kPages: k.pointer, vPages: v.pointer, out: out.pointer });
  const peak = device.commands();
  peak.launch(device.compile(peakKernel, {}), { out: peakOut.pointer }, PEAK_TASKS);

  const timed = async (list: typeof commands): Promise<number> => {
    const start = performance.now();
    await device.run(list);
    return (performance.now() - start) * 1000;
  };
  await device.run(commands);
  const times: number[] = [];
  const peakTimes: number[] = [];
  for (const end = performance.now() + ROUND_MS; performance.now() < end || times.length < 5; ) {
    peakTimes.push(await timed(peak));
    times.push(await timed(commands));
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
  const [median, peakMedian] = [times, peakTimes].map((list) => list.sort((a, b) => a - b)[list.length >> 1]);
  return {
    name,
    shape: `${numQHeads}/${numKvHeads} x ${headDim} ${storage}`,
    threads: device.threads,
    microseconds: { median, min: times[0] },
    gigaflops: (4 * pairs * numQHeads * headDim) / median / 1000,
    gigabytesPerSecond: (2 * numKeys * numKvHeads * headDim * elementBytes) / median / 1000,
    peakGigaflops: (2 * 4 * NUM_CHAINS * PEAK_STEPS * PEAK_TASKS) / peakMedian / 1000,
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

/** All scenarios on a device with this many threads. */
export async function benchAttention(threads: number): Promise<AttentionRow[]> {
  const device = await CpuDevice.create({ threads });
  const rows: AttentionRow[] = [];
  for (const scenario of scenarios) rows.push(await measure(device, scenario));
  await device.close();
  return rows;
}

async function main(args: string[]): Promise<void> {
  console.log(`${"scenario".padEnd(26)}${"heads".padEnd(16)}threads   GFLOP/s      peak    GB/s   us (median, min)`);
  for (const threads of args.length > 0 ? args.map(Number) : [1, 2]) {
    for (const row of await benchAttention(threads)) {
      const { median, min } = row.microseconds;
      const figures = [row.gigaflops, row.peakGigaflops].map((value) => value.toFixed(1).padStart(10)).join("");
      const bytes = row.gigabytesPerSecond.toFixed(1).padStart(8);
      const times = `   ${median.toFixed(0)}, ${min.toFixed(0)}`;
      console.log(`${row.name.padEnd(26)}${row.shape.padEnd(16)}${`${threads}`.padStart(7)}${figures}${bytes}${times}`);
    }
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main(process.argv.slice(2));
