/** Golden cases of merging attention states, and of attention over shared prefixes: levels that are merged by their LSE. */
import { MultiLevelCascadeAttention } from "../src/attention/cascade.ts";
import type { KvTensors } from "../src/attention/tensors.ts";
import type { CpuDevice, DeviceBuffer } from "../src/devices/index.ts";
import { type AttentionBatch, type AttentionSpec, attentionReference, nhdStrides } from "../src/ops/attention/index.ts";
import type { DeviceTensor } from "../src/ops/elementwise/index.ts";
import { type MergeStatesSpec, mergeStates, recordMergeStates } from "../src/ops/mergeStates/index.ts";
import type { Recorder } from "../src/ops/recorder.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";

type Outputs = Readonly<Record<string, ArrayLike<number>>>;

export async function runMergeStates(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const numStates = golden.requiredNumber("num_states");
  if (golden.file.params.lse_base !== "e") throw new Error("params.lse_base must be e");
  const spec: MergeStatesSpec = {
    numHeads: golden.requiredNumber("num_heads"),
    headDim: golden.requiredNumber("head_dim"),
  };
  const [v, s] = [golden.input("v"), golden.input("s")];
  if (target.name === "reference") {
    const merged = mergeStates(spec, numStates, v, s);
    return { out: merged.v, lse: merged.s };
  }
  const numRows = golden.shape("v")[0];
  return onDevice(target.device, async (memory) => {
    const args = {
      v: memory.upload(golden.shape("v"), v),
      s: memory.upload(golden.shape("s"), s),
      out: memory.empty([numRows, spec.numHeads, spec.headDim]),
      lse: memory.empty([numRows, spec.numHeads]),
    };
    await memory.run((recorder) => recordMergeStates(recorder, spec, args));
    return { out: memory.read(args.out), lse: memory.read(args.lse) };
  });
}

/** One batch a level over the same rows, and the spec of the last level. */
interface CascadeCall {
  readonly spec: AttentionSpec & { readonly pageSize: number };
  readonly levels: readonly AttentionBatch[];
}

export async function runCascade(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const call = readCascade(golden);
  return target.name === "reference" ? cascadeOnReference(golden, call) : cascadeOnCpu(golden, call, target.device);
}

/** Every prefix belongs to all sequences; page_indices has a row for each prefix, then one for each sequence. */
function readCascade(golden: GoldenCase): CascadeCall {
  const [prefixLens, suffixLens] = [golden.integers("prefix_lens"), golden.integers("suffix_lens")];
  const [queryLen, numLevels] = [golden.requiredNumber("q_len"), golden.requiredNumber("levels")];
  if (numLevels !== prefixLens.length + 1) throw new Error("params.levels must be one more than there are prefixes");
  const [numRows, numQHeads, headDim] = golden.shape("q");
  const [numPages, pageSize, numKvHeads] = golden.shape("k_cache");
  const pages = golden.integers("page_indices");
  const maxPages = golden.shape("page_indices")[1];
  const common = { numRows, maxPages, numPages };
  const prefixes = Array.from(
    prefixLens,
    (kvLen, l): AttentionBatch => ({
      ...common,
      numSeqs: 1,
      queryIndptr: Int32Array.of(0, numRows),
      kvLens: Int32Array.of(kvLen),
      blockTables: pages.subarray(l * maxPages, (l + 1) * maxPages),
      allowUnseeing: true,
    }),
  );
  const own: AttentionBatch = {
    ...common,
    numSeqs: suffixLens.length,
    queryIndptr: Int32Array.from({ length: suffixLens.length + 1 }, (_, s) => s * queryLen),
    kvLens: suffixLens,
    blockTables: pages.subarray(prefixLens.length * maxPages),
  };
  const smScale = golden.requiredNumber("sm_scale");
  const causal = golden.file.params.causal === true;
  return {
    spec: { headDim, numQHeads, numKvHeads, pageSize, storage: "f32", causal, smScale, returnLse: true },
    levels: [...prefixes, own],
  };
}

/** The states of all levels, merged. */
function cascadeOnReference(golden: GoldenCase, { spec, levels }: CascadeCall): Outputs {
  const { numQHeads, headDim } = spec;
  const strides = nhdStrides(spec);
  const inputs = {
    q: golden.input("q"),
    kPages: golden.input("k_cache"),
    vPages: golden.input("v_cache"),
    kStrides: strides,
    vStrides: strides,
  };
  const states = levels.map((batch, l) =>
    attentionReference({ ...spec, causal: spec.causal && l === levels.length - 1 }, batch, inputs),
  );
  const { numRows } = levels[0];
  const byRow = (name: "out" | "lse", rowLength: number): number[] =>
    Array.from({ length: numRows }, (_, row) =>
      states.flatMap((state) => Array.from(state[name].subarray(row * rowLength, (row + 1) * rowLength))),
    ).flat();
  const merge = { numHeads: numQHeads, headDim };
  const merged = mergeStates(merge, levels.length, byRow("out", numQHeads * headDim), byRow("lse", numQHeads));
  return {
    out: merged.v,
    lse: merged.s,
    level_out: states.flatMap(({ out }) => Array.from(out)),
    level_lse: states.flatMap(({ lse }) => Array.from(lse)),
  };
}

/** The whole cascade, and each level as a cascade of one. */
async function cascadeOnCpu(golden: GoldenCase, { spec, levels }: CascadeCall, device: CpuDevice): Promise<Outputs> {
  return onDevice(device, async (memory) => {
    const q = memory.upload(golden.shape("q"), golden.input("q"));
    const cache = {
      k: memory.upload(golden.shape("k_cache"), golden.input("k_cache")),
      v: memory.upload(golden.shape("v_cache"), golden.input("v_cache")),
    };
    const run = async (batches: readonly AttentionBatch[], causal: boolean) => {
      const attention = new MultiLevelCascadeAttention(device, batches.length, { ...spec, causal });
      try {
        attention.plan(batches);
        return await runOnce(memory, attention, q, cache);
      } finally {
        attention.release();
      }
    };
    const whole = await run(levels, spec.causal);
    const single: { out: Float32Array; lse: Float32Array }[] = [];
    for (const [l, batch] of levels.entries()) {
      single.push(await run([batch], spec.causal && l === levels.length - 1));
    }
    return {
      ...whole,
      level_out: single.flatMap(({ out }) => Array.from(out)),
      level_lse: single.flatMap(({ lse }) => Array.from(lse)),
    };
  });
}

async function runOnce(
  memory: CaseMemory,
  attention: MultiLevelCascadeAttention,
  q: DeviceTensor,
  cache: KvTensors,
): Promise<{ out: Float32Array; lse: Float32Array }> {
  const [out, lse] = [memory.empty(q.shape), memory.empty(q.shape.slice(0, 2))];
  await attention.run({ q, cache, out, lse });
  return { out: memory.read(out), lse: memory.read(lse) };
}

/** Tensors of one case on a device. */
interface CaseMemory {
  upload(shape: readonly number[], values: ArrayLike<number>): DeviceTensor;
  /** For a result: 123 everywhere. */
  empty(shape: readonly number[]): DeviceTensor;
  read(tensor: DeviceTensor): Float32Array;
  run(record: (recorder: Recorder) => void): Promise<void>;
}

/** Runs a case with tensors that are freed at its end. */
async function onDevice(device: CpuDevice, body: (memory: CaseMemory) => Promise<Outputs>): Promise<Outputs> {
  const buffers: DeviceBuffer[] = [];
  const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
  const upload = (shape: readonly number[], values: ArrayLike<number>): DeviceTensor => {
    const buffer = device.allocate(Math.max(4 * values.length, 64), "golden case");
    buffers.push(buffer);
    device.f32(buffer).set(values);
    return { pointer: buffer.pointer, shape, type: "f32" };
  };
  try {
    return await body({
      upload,
      empty: (shape) => upload(shape, new Float32Array(count(shape)).fill(123)),
      read: ({ pointer, shape }) => device.f32At(pointer, count(shape)).slice(),
      async run(record) {
        const commands = device.commands();
        record({ device, commands });
        await device.run(commands);
        commands.free();
      },
    });
  } finally {
    for (const buffer of buffers) device.free(buffer);
  }
}
