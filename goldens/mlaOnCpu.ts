/** Runs the golden cases of multi-head latent attention on the CPU device, over f32 caches. */
import {
  BatchMLAPagedAttention,
  type BatchMlaSpec,
  type MlaCacheTensors,
  type MlaModuleSpec,
  type MlaModuleWeights,
  SparseMla,
} from "../src/attention/mla/index.ts";
import type { CpuDevice } from "../src/devices/index.ts";
import { type AppendMlaSpec, mlaTokenPages, recordAppendMla } from "../src/ops/appendMla/index.ts";
import { CpuAttentionPlan, recordAttention } from "../src/ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../src/ops/elementwise/index.ts";
import { recordHeadProjection } from "../src/ops/headProjection/index.ts";
import { recordRmsNorm } from "../src/ops/rmsNorm/index.ts";
import { RopeTable, recordRope } from "../src/ops/rope/index.ts";
import { DeviceArrays } from "./deviceArrays.ts";
import type { NumberArray } from "./inputs.ts";
import type { PagedMlaCall, RaggedPrefillCall, SparseMlaCall } from "./mla.ts";

type Outputs = Record<string, ArrayLike<number>>;

/** Small enough that the cases of many new tokens go over their contexts in several chunks. */
const rebuiltTokens = 48;

/** Both forms, because either may be what a step takes: one alone gives the latents, and where they part the case cannot pass. */
export async function mlaOnCpu(call: PagedMlaCall, device: CpuDevice): Promise<Outputs> {
  const absorbed = await runForm(call, device, "absorbed");
  const rebuilt = await runForm(call, device, "rebuilt");
  for (const name of ["o", "lse"] as const) {
    const worst = absorbed[name].reduce((most, value, i) => {
      return value === rebuilt[name][i] ? most : Math.max(most, Math.abs(value - rebuilt[name][i]));
    }, 0);
    if (!(worst < 2e-5)) throw new Error(`${name} of the absorbed and of the rebuilt form differ by ${worst}`);
  }
  return absorbed;
}

async function runForm(
  { spec, batch, inputs, fusedCache }: PagedMlaCall,
  device: CpuDevice,
  form: "absorbed" | "rebuilt",
): Promise<Record<"z" | "o" | "lse", Float32Array>> {
  const { rope, numHeads, kvLoraRank, qkRopeHeadDim, qkNopeHeadDim, vHeadDim, pageSize } = spec;
  const { numRows, numPages } = batch;
  const { qNope, qPe, kvBProj, ckvCache, kpeCache } = inputs;
  if (!qNope || !kvBProj) throw new Error("the case has no queries of heads");
  const arrays = new DeviceArrays(device);
  const attention = new BatchMLAPagedAttention(device, {
    ...spec,
    form,
    rebuiltTokens,
    returnLse: true,
    rope: rope && { style: rope.style },
  } satisfies BatchMlaSpec);
  const commands = device.commands();
  try {
    const cache: MlaCacheTensors = fusedCache
      ? { fused: arrays.f32([numPages, pageSize, kvLoraRank + qkRopeHeadDim], toArray(fusedCache)) }
      : {
          ckv: arrays.f32([numPages, pageSize, kvLoraRank], toArray(ckvCache)),
          kpe: kpeCache && arrays.f32([numPages, pageSize, qkRopeHeadDim], toArray(kpeCache)),
        };
    const longest = batch.kvLens.reduce((most, length) => Math.max(most, length), 1);
    const z = arrays.empty([numRows, numHeads, kvLoraRank]);
    const o = arrays.empty([numRows, numHeads, vHeadDim]);
    const lse = arrays.empty([numRows, numHeads]);
    attention.plan(batch);
    attention.record(
      { device, commands },
      {
        qNope: arrays.f32([numRows, numHeads, qkNopeHeadDim], toArray(qNope)),
        qPe: qPe && arrays.f32([numRows, numHeads, qkRopeHeadDim], toArray(qPe)),
        kvBProj: arrays.f32([numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank], toArray(kvBProj)),
        cache,
        z: form === "absorbed" ? z : undefined,
        out: o,
        lse,
        ropeTable: rope && arrays.f32([longest, qkRopeHeadDim], new RopeTable(rope).rows(longest)),
      },
    );
    await device.run(commands);
    return { z: arrays.read(z), o: arrays.read(o), lse: arrays.read(lse) };
  } finally {
    commands.free();
    attention.release();
    arrays.free();
  }
}

export async function prefillOnCpu({ spec, batch, q, k, v }: RaggedPrefillCall, device: CpuDevice): Promise<Outputs> {
  const { numQHeads, numKvHeads, headDim, headDimV = headDim } = spec;
  const arrays = new DeviceArrays(device);
  const plan = new CpuAttentionPlan(device, { ...spec, storage: "f32" });
  const commands = device.commands();
  try {
    const out = arrays.empty([batch.numRows, numQHeads, headDimV]);
    const lse = arrays.empty([batch.numRows, numQHeads]);
    plan.update(batch);
    recordAttention({ device, commands }, plan, {
      q: arrays.f32([batch.numRows, numQHeads, headDim], q).pointer,
      kPages: arrays.f32([batch.numPages, numKvHeads, headDim], k).pointer,
      vPages: arrays.f32([batch.numPages, numKvHeads, headDimV], v).pointer,
      out: out.pointer,
      lse: lse.pointer,
    });
    await device.run(commands);
    return { out: arrays.read(out), lse: arrays.read(lse) };
  } finally {
    commands.free();
    plan.release();
    arrays.free();
  }
}

export async function sparseOnCpu({ shape, inputs, numSlots }: SparseMlaCall, device: CpuDevice): Promise<Outputs> {
  const { numHeads, kvLoraRank, qkRopeHeadDim } = shape;
  const width = kvLoraRank + qkRopeHeadDim;
  const arrays = new DeviceArrays(device);
  const attention = new SparseMla(device, { ...shape, sinks: inputs.sinks !== undefined, returnLse: true });
  const commands = device.commands();
  try {
    const numRows = inputs.indices.length / inputs.topk;
    const z = arrays.empty([numRows, numHeads, kvLoraRank]);
    const lse = arrays.empty([numRows, numHeads]);
    const topkLengths = inputs.lengths && Int32Array.from(inputs.lengths);
    attention.plan({ indices: inputs.indices, topk: inputs.topk, topkLengths, numSlots });
    attention.record(
      { device, commands },
      {
        q: arrays.f32([numRows, numHeads, width], toArray(inputs.q)),
        cache: { fused: arrays.f32([numSlots, 1, width], toArray(inputs.kvCache)) },
        sinks: inputs.sinks && arrays.f32([numHeads], toArray(inputs.sinks)),
        out: z,
        lse,
      },
    );
    await device.run(commands);
    return { out: arrays.read(z), lse: arrays.read(lse) };
  } finally {
    commands.free();
    attention.release();
    arrays.free();
  }
}

/** A layer of these operations, its one sequence in pages of 16; matrices as one head each of a projection. */
export async function moduleOnCpu(
  spec: MlaModuleSpec,
  weights: MlaModuleWeights,
  hidden: NumberArray,
  positions: Int32Array,
  device: CpuDevice,
): Promise<Outputs> {
  const { numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim, hiddenSize, normEps: eps } = spec;
  const numTokens = positions.length;
  const numPages = Math.ceil(numTokens / pageSize);
  const arrays = new DeviceArrays(device);
  const commands = device.commands();
  const recorder = { device, commands };
  const attention = new BatchMLAPagedAttention(device, {
    ...spec,
    rope: undefined,
    pageSize,
    causal: true,
    returnLse: true,
    absorbThreshold: 0,
    rebuiltTokens,
  });
  const linear = (x: DeviceTensor, matrix: ArrayLike<number>, columns: number): DeviceTensor => {
    const rows = matrix.length / columns;
    const out = arrays.empty([numTokens, 1, rows]);
    const weight = arrays.f32([rows, columns], toArray(matrix));
    recordHeadProjection(
      recorder,
      { kind: "expand", rows, columns },
      { x: { ...x, shape: [numTokens, 1, columns] }, weight, out },
    );
    return out;
  };
  const norm = (rows: RowsTensor, weight: ArrayLike<number>, out: RowsTensor): void => {
    const tensor = arrays.f32([weight.length], toArray(weight));
    const spec = { dim: weight.length, eps, weightOffset: 0, residual: "none" } as const;
    recordRmsNorm(recorder, spec, { x: rows, weight: tensor, out });
  };
  try {
    let q = linear(arrays.f32([numTokens, hiddenSize], hidden), weights.qProj, hiddenSize);
    if (weights.qLowRank) {
      const rank = weights.qLowRank.norm.length;
      const rows = { ...q, shape: [numTokens, rank] };
      norm(rows, weights.qLowRank.norm, rows);
      q = linear(q, weights.qLowRank.qBProj, rank);
    }
    const headDim = qkNopeHeadDim + qkRopeHeadDim;
    const kv = linear(arrays.f32([numTokens, hiddenSize], hidden), weights.kvAProj, hiddenSize);
    const table = new RopeTable(spec.rope, spec.seqLen).rows(Math.max(...positions) + 1);
    const rotated = {
      positions: arrays.i32(positions).pointer,
      table: arrays.f32([table.length], table).pointer,
      numRows: numTokens,
    };
    const { rotaryDim, style, theta, scaling } = spec.rope;
    const inHeads = { headDim, rotaryDim, style, theta, scaling };
    const qPe = {
      ...q,
      pointer: q.pointer + qkNopeHeadDim * 4,
      shape: [numTokens, numHeads, qkRopeHeadDim],
      headStride: headDim,
    };
    recordRope(recorder, inHeads, { ...rotated, x: qPe.pointer, numHeads });
    const kvRow = kvLoraRank + qkRopeHeadDim;
    recordRope(recorder, spec.rope, { ...rotated, x: kv.pointer + kvLoraRank * 4, numHeads: 1, rowStride: kvRow });
    const latents = { ...kv, shape: [numTokens, kvLoraRank], rowStride: kvRow };
    norm(latents, weights.kvNorm, latents);
    const cached = arrays.empty([numPages, pageSize, kvRow]);
    const append: AppendMlaSpec = { kvLoraRank, qkRopeHeadDim, storage: "f32" };
    recordAppendMla(recorder, append, {
      ckv: latents,
      kpe: { ...kv, pointer: kv.pointer + kvLoraRank * 4, shape: [numTokens, qkRopeHeadDim], rowStride: kvRow },
      ...mlaTokenPages(append, { pointer: cached.pointer, numSlots: numPages * pageSize }),
      slotMapping: arrays.i32(Int32Array.from(positions, (_, token) => token)),
    });
    attention.plan({
      numRows: numTokens,
      numSeqs: 1,
      queryIndptr: Int32Array.of(0, numTokens),
      kvLens: Int32Array.of(numTokens),
      blockTables: Int32Array.from({ length: numPages }, (_, page) => page),
      maxPages: numPages,
      numPages,
    });
    const result = attention.record(recorder, {
      qNope: { ...q, shape: [numTokens, numHeads, qkNopeHeadDim], headStride: headDim },
      qPe,
      kvBProj: arrays.f32([numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank], toArray(weights.kvBProj)),
      cache: { fused: cached },
      out: arrays.empty([numTokens, numHeads, vHeadDim]),
      lse: arrays.empty([numTokens, numHeads]),
    });
    const y = linear(result.out, weights.oProj, numHeads * vHeadDim);
    await device.run(commands);
    const rows = device.f32At(cached.pointer, numTokens * kvRow);
    return {
      y: arrays.read(y),
      lse: result.lse ? arrays.read(result.lse) : [],
      ckv_cache: rows.filter((_, i) => i % kvRow < kvLoraRank),
      kpe_cache: rows.filter((_, i) => i % kvRow >= kvLoraRank),
    };
  } finally {
    commands.free();
    attention.release();
    arrays.free();
  }
}

const pageSize = 16;

const toArray = (values: ArrayLike<number>): Float32Array => Float32Array.from(values);
