/**
 * npm run bench -- attention: ragged paged attention on the CPU device, decode and prefill, in operations and bytes a second. Two
 * operations per multiply-add of the two products; bytes are those of the keys and values read.
 */
import { CpuDevice } from "../src/devices/index.ts";
import {
  type AttentionBatch,
  type AttentionSpec,
  CpuAttentionPlan,
  recordAttention,
} from "../src/ops/attention/index.ts";

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
  { name: "decode, 1 sequence of 4096", ...heads, storage: "f32", sequences: repeat(1, 1, 4096) },
  { name: "decode, 1 sequence of 4096", ...heads, storage: "f16", sequences: repeat(1, 1, 4096) },
  { name: "decode, 16 sequences of 4096", ...heads, storage: "f32", sequences: repeat(16, 1, 4096) },
  { name: "decode, 16 sequences of 4096", ...heads, storage: "f16", sequences: repeat(16, 1, 4096) },
  { name: "decode, 16 sequences of 256", ...gemma, storage: "f32", sequences: repeat(16, 1, 256) },
  { name: "decode, 16 sequences of 256", ...gemma, storage: "f16", sequences: repeat(16, 1, 256) },
  { name: "prefill of 512", ...heads, storage: "f32", sequences: repeat(1, 512, 512) },
  { name: "prefill of 512", ...heads, storage: "f16", sequences: repeat(1, 512, 512) },
  { name: "prefill of 512", ...gemma, storage: "f16", sequences: repeat(1, 512, 512) },
  { name: "prefill of 512 after 3584", ...heads, storage: "f32", sequences: repeat(1, 512, 4096) },
];

async function measure(device: CpuDevice, scenario: Scenario): Promise<string> {
  const { numQHeads, numKvHeads, headDim, storage, sequences } = scenario;
  const pageSize = 16;
  const spec: AttentionSpec = {
    numQHeads,
    numKvHeads,
    headDim,
    storage,
    pageSize,
    causal: true,
    smScale: headDim ** -0.5,
  };
  const numPages = sequences.reduce((sum, { kvLen }) => sum + Math.ceil(kvLen / pageSize), 0);
  const maxPages = Math.max(...sequences.map(({ kvLen }) => Math.ceil(kvLen / pageSize)));
  const blockTables = new Int32Array(sequences.length * maxPages);
  let nextPage = 0;
  for (const [s, { kvLen }] of sequences.entries()) {
    // Neighbouring pages of a sequence are far apart, as in a pool in use.
    for (let j = 0; j < Math.ceil(kvLen / pageSize); j++)
      blockTables[s * maxPages + j] = (nextPage++ * 7919) % numPages;
  }
  const queryIndptr = Int32Array.of(0, ...sequences.map(() => 0));
  for (const [s, { queryLen }] of sequences.entries()) queryIndptr[s + 1] = queryIndptr[s] + queryLen;
  const numRows = queryIndptr[sequences.length];
  const batch: AttentionBatch = {
    numRows,
    numSeqs: sequences.length,
    queryIndptr,
    kvLens: Int32Array.from(sequences, ({ kvLen }) => kvLen),
    blockTables,
    maxPages,
    numPages,
  };
  const elementBytes = storage === "f32" ? 4 : 2;
  const poolBytes = numPages * pageSize * numKvHeads * headDim * elementBytes;
  const rowBytes = numRows * numQHeads * headDim * 4;
  const buffers = [poolBytes, poolBytes, rowBytes, rowBytes].map((numBytes) => device.allocate(numBytes, "bench"));
  const [k, v, q, out] = buffers;
  // 0x3c00... patterns: finite small numbers in either storage type.
  for (const pages of [k, v]) device.u8(pages).fill(0x3c);
  device.f32(q).forEach((_, i, all) => {
    all[i] = Math.sin(i);
  });

  const plan = new CpuAttentionPlan(device, spec);
  plan.update(batch);
  const commands = device.commands();
  const args = { q: q.pointer, kPages: k.pointer, vPages: v.pointer, out: out.pointer };
  recordAttention({ device, commands }, plan, args);
  await device.run(commands);
  const times: number[] = [];
  const until = performance.now() + 600;
  while (performance.now() < until || times.length < 5) {
    const start = performance.now();
    await device.run(commands);
    times.push((performance.now() - start) / 1000);
  }
  commands.free();
  plan.release();
  for (const buffer of buffers) device.free(buffer);

  times.sort((a, b) => a - b);
  const seconds = times[times.length >> 1];
  let pairs = 0;
  let keys = 0;
  for (const { queryLen, kvLen } of sequences) {
    pairs += queryLen * kvLen - (queryLen * (queryLen - 1)) / 2;
    keys += kvLen;
  }
  const gflops = (4 * pairs * numQHeads * headDim) / seconds / 1e9;
  const gigabytes = (2 * keys * numKvHeads * headDim * elementBytes) / seconds / 1e9;
  const shape = `${numQHeads}/${numKvHeads}x${headDim} ${storage}`;
  return `${scenario.name.padEnd(30)} ${shape.padEnd(14)} ${(seconds * 1e6).toFixed(0).padStart(7)} us ${gflops.toFixed(1).padStart(7)} GFLOP/s ${gigabytes.toFixed(1).padStart(6)} GB/s`;
}

/** Prints one line for each scenario and number of threads. */
export async function run(args: readonly string[] = []): Promise<void> {
  const wanted = args.find((arg) => !arg.startsWith("-"));
  for (const threads of [1, 2]) {
    const device = await CpuDevice.create({ threads });
    try {
      console.log(`${threads} thread${threads > 1 ? "s" : ""}`);
      for (const scenario of scenarios.filter(({ name }) => !wanted || name.includes(wanted))) {
        console.log(`  ${await measure(device, scenario)}`);
      }
    } finally {
      await device.close();
    }
  }
}

if (import.meta.main) await run(process.argv.slice(2));
