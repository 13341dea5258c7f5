/**
 * Golden cases of grouped-query attention as training has it: whole batches [batch, head, position, channel], with as many queries and keys
 * as one likes. Only the forward part: ops.ts says which outputs are left out.
 */
import type { CpuDevice, DeviceBuffer } from "../src/devices/index.ts";
import {
  type AttentionBatch,
  type AttentionSpec,
  attentionReference,
  CpuAttentionPlan,
  type PackedMask,
  recordAttention,
} from "../src/ops/attention/index.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";
import { range } from "./raggedBatch.ts";

/** One attention call over contiguous keys. Query heads of one key/value head are neighbours here, whatever the case has. */
interface Call {
  readonly spec: AttentionSpec;
  readonly batch: AttentionBatch;
  /** [batch * position, head, channel] */
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  /** Elements between two heads of k, in rows. */
  readonly headRows: number;
}

export async function runGqaForward(golden: GoldenCase, target: GoldenTarget): Promise<Record<string, Float64Array>> {
  const call = readCall(golden);
  const { headDim, headDimV = headDim } = call.spec;
  const strides = (channels: number) => ({ page: channels, slot: channels, head: call.headRows * channels });
  const kStrides = strides(headDim);
  const vStrides = strides(headDimV);
  const { out, lse } =
    target.name === "cpu"
      ? await onCpu(target.device, call, kStrides, vStrides)
      : attentionReference(call.spec, call.batch, { q: call.q, kPages: call.k, vPages: call.v, kStrides, vStrides });
  return { o: toHeads(golden, out, headDimV), lse: toHeads(golden, lse, 1) };
}

function readCall(golden: GoldenCase): Call {
  const [numBatches, numQHeads, numQueries, headDim] = golden.shape("q");
  const [, numKvHeads, numKeys] = golden.shape("k");
  const sequences = range(0, numBatches);
  const keyLens = golden.has("key_lens") ? golden.integers("key_lens") : undefined;
  const causal = golden.file.params.causal === true;
  return {
    spec: {
      headDim,
      headDimV: golden.shape("v")[3],
      numQHeads,
      numKvHeads,
      storage: "f32",
      // Causality is that of all keys, also where a sequence sees fewer: only a mask can say both.
      causal: causal && !keyLens,
      customMask: keyLens !== undefined,
      slidingWindow: golden.number("sliding_window"),
      softCap: golden.number("soft_cap"),
      smScale: golden.requiredNumber("sm_scale"),
      returnLse: true,
    },
    batch: {
      numRows: numBatches * numQueries,
      numSeqs: numBatches,
      queryIndptr: Int32Array.from(range(0, numBatches + 1), (b) => b * numQueries),
      kvLens: new Int32Array(numBatches).fill(numKeys),
      blockTables: Int32Array.from(sequences, (b) => b * numKvHeads * numKeys),
      maxPages: 1,
      numPages: numBatches * numKvHeads * numKeys,
      customMask: keyLens && maskOf(keyLens, numQueries, numKeys, causal),
      allowUnseeing: true,
    },
    q: toRows(golden, golden.input("q"), headDim),
    k: Float32Array.from(golden.input("k")),
    v: Float32Array.from(golden.input("v")),
    headRows: numKeys,
  };
}

function maskOf(keyLens: Int32Array, numQueries: number, numKeys: number, causal: boolean): PackedMask {
  const numBytes = Math.ceil((numQueries * numKeys) / 8);
  const bits = new Uint8Array(keyLens.length * numBytes);
  for (const [b, keyLen] of keyLens.entries()) {
    for (let i = 0; i < numQueries; i++) {
      const end = causal ? Math.min(keyLen, i + numKeys - numQueries + 1) : keyLen;
      for (let t = 0; t < end; t++) {
        const bit = i * numKeys + t;
        bits[b * numBytes + (bit >> 3)] |= 1 << (bit & 7);
      }
    }
  }
  return { bits, indptr: Int32Array.from(keyLens, (_, b) => b * numBytes) };
}

/** Place among all heads of query head h, once the heads of one key/value head are neighbours. */
function headPlace(golden: GoldenCase, h: number): number {
  const [numQHeads, numKvHeads] = [golden.shape("q")[1], golden.shape("k")[1]];
  const { head_map: map } = golden.file.params;
  if (map === "grouped") return h;
  if (map === "tiled") return (h % numKvHeads) * (numQHeads / numKvHeads) + Math.floor(h / numKvHeads);
  throw new Error(`params.head_map must be grouped or tiled, got ${JSON.stringify(map)}`);
}

/** Calls `move` with where a head's channels begin in [batch, head, position] and where in [batch * position, head]. */
function eachHead(golden: GoldenCase, channels: number, move: (inHeads: number, inRows: number) => void): void {
  const [numBatches, numHeads, numQueries] = golden.shape("q");
  for (let b = 0; b < numBatches; b++) {
    for (let h = 0; h < numHeads; h++) {
      for (let i = 0; i < numQueries; i++) {
        const row = b * numQueries + i;
        move(((b * numHeads + h) * numQueries + i) * channels, (row * numHeads + headPlace(golden, h)) * channels);
      }
    }
  }
}

function toRows(golden: GoldenCase, values: ArrayLike<number>, channels: number): Float32Array {
  const rows = new Float32Array(values.length);
  eachHead(golden, channels, (from, to) => {
    for (let d = 0; d < channels; d++) rows[to + d] = values[from + d];
  });
  return rows;
}

function toHeads(golden: GoldenCase, rows: ArrayLike<number>, channels: number): Float64Array {
  const heads = new Float64Array(rows.length);
  eachHead(golden, channels, (to, from) => {
    for (let d = 0; d < channels; d++) heads[to + d] = rows[from + d];
  });
  return heads;
}

type Strides = { readonly page: number; readonly slot: number; readonly head: number };

async function onCpu(
  device: CpuDevice,
  { spec, batch, q, k, v }: Call,
  kStrides: Strides,
  vStrides: Strides,
): Promise<{ out: Float32Array; lse: Float32Array }> {
  const buffers: DeviceBuffer[] = [];
  const allocate = (numElements: number, label: string): DeviceBuffer => {
    const buffer = device.allocate(Math.max(numElements * 4, 64), label);
    buffers.push(buffer);
    return buffer;
  };
  const upload = (values: Float32Array, label: string): number => {
    const buffer = allocate(values.length, label);
    device.f32(buffer).set(values);
    return buffer.pointer;
  };
  const plan = new CpuAttentionPlan(device, spec);
  const commands = device.commands();
  try {
    const numHeadRows = batch.numRows * spec.numQHeads;
    const { headDimV = spec.headDim } = spec;
    const out = allocate(numHeadRows * headDimV, "out");
    const lse = allocate(numHeadRows, "lse");
    plan.update(batch);
    recordAttention({ device, commands }, plan, {
      q: upload(q, "queries"),
      kPages: upload(k, "keys"),
      vPages: upload(v, "values"),
      out: out.pointer,
      lse: lse.pointer,
      kStrides,
      vStrides,
    });
    await device.run(commands);
    return { out: device.f32(out).slice(0, numHeadRows * headDimV), lse: device.f32(lse).slice(0, numHeadRows) };
  } finally {
    commands.free();
    plan.release();
    for (const buffer of buffers) device.free(buffer);
  }
}
