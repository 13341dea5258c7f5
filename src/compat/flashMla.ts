/**
 * FlashMLA's flash_mla_with_kvcache: latent attention over a cache of whole rows, dense over page tables or sparse over lists of tokens. With
 * its names, layouts and defaults; the LSE is natural, [batch, heads, queries], and +infinity for a row that sees nothing.
 */
import { AbsorbedMla, fp8TokenLayout, type ResultTensor, SparseMla, type StridedTensor } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { AttentionBatch, ElementStorage } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { recordApplySinks, recordMergeStateInPlace } from "../ops/mergeStates/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { ArgumentError, elementBytes, formatShape, ShapeError } from "../tensor/index.ts";
import { floatStorage, requireAxes } from "./attendOnce.ts";
import type { FlashMLASchedMeta } from "./flashMlaMetadata.ts";
import { type PageTable, requireInt32, requirePageTable } from "./int32Arrays.ts";
import { requireTensor } from "./mlaPlan.ts";

/** Slots of tokens, page * pageSize + offset: -1 and what is past the cache are none. */
export interface SlotLists {
  readonly values: Int32Array;
  /** [batch, queries, topk] */
  readonly shape: readonly [number, number, number];
}

/** The original's arguments after the metadata. */
export interface FlashMlaOptions {
  /** q's channels^-0.5 by default, which is not DeepSeek's scale: see `mlaSoftmaxScale`. */
  readonly softmaxScale?: number;
  /** Query i of n sees the tokens up to its own; false by default, and for sparse attention. */
  readonly causal?: boolean;
  /** The cache holds rows of 656 bytes (`fp8TokenLayout`); false by default. */
  readonly isFp8Kvcache?: boolean;
  /** Sparse attention: the tokens of each query. Everything below is for it alone. */
  readonly indices?: SlotLists;
  /** [heads] f32: scales each head's result by exp(lse) / (exp(lse) + exp(sink)). The LSE leaves it out. */
  readonly attnSink?: DeviceTensor;
  /** A second cache, and the tokens of it that are attended besides. */
  readonly extraKCache?: DeviceTensor;
  readonly extraIndicesInKvcache?: SlotLists;
  /** [batch]: entries of each list that count, from the first on. */
  readonly topkLength?: Int32Array;
  readonly extraTopkLength?: Int32Array;
}

/** Both allocated, and the caller's to free (`ResultTensor.buffer`). */
export interface FlashMlaResult {
  /** [batch, queries, heads, headDimV] f32 */
  readonly out: ResultTensor;
  /** [batch, heads, queries] f32 */
  readonly lse: ResultTensor;
}

/**
 * @param q [batch, queries, heads, 576 or 512] f32, dense: absorbed and rotated
 * @param kCache [pages, 64, kv heads, as q] of any floating-point type, or with isFp8Kvcache u8 [pages, 64, 1, 656]
 * @param blockTable [batch, maxPages]; undefined for sparse attention
 * @param cacheSeqlens [batch]: tokens of each sequence, the new ones included; undefined for sparse attention
 * @param headDimV 512: values are the first channels of the keys
 * @returns Rejects with ShapeError or ArgumentError naming what does not fit.
 */
export async function flashMlaWithKvcache(
  device: CpuDevice,
  q: DeviceTensor,
  kCache: DeviceTensor,
  blockTable: PageTable | undefined,
  cacheSeqlens: Int32Array | undefined,
  headDimV: number,
  tileSchedulerMetadata: FlashMLASchedMeta,
  options: FlashMlaOptions = {},
): Promise<FlashMlaResult> {
  requireAxes("q", q, "batch, queries, heads, channels");
  const [batch, queries, heads, channels] = q.shape;
  requireTensor("q", q, "f32", q.shape);
  if (channels !== 576 && channels !== 512) throw new ShapeError(`q.shape[3] = ${channels} must be 576 or 512`);
  if (headDimV !== 512) throw new ArgumentError(`headDimV = ${headDimV} must be 512`);
  const { softmaxScale = channels ** -0.5, isFp8Kvcache = false } = options;
  const call: Call = { device, q, batch, queries, heads, channels, headDimV, softmaxScale, isFp8Kvcache };
  const out = allocate(device, "out", [batch, queries, heads, headDimV]);
  const lse = allocate(device, "lse", [batch, heads, queries]);
  const commands = device.commands();
  const partial: ResultTensor[] = [];
  const scratch = (shape: readonly number[]): ResultTensor => {
    partial.push(allocate(device, "scratch", shape));
    return partial[partial.length - 1];
  };
  try {
    const recorder = { device, commands };
    const lses = options.indices
      ? recordSparse(recorder, call, kCache, tileSchedulerMetadata, options, options.indices, out, scratch)
      : recordDense(recorder, call, kCache, blockTable, cacheSeqlens, tileSchedulerMetadata, options, out, scratch);
    await device.run(commands);
    writeLse(call, lses, lse);
    return { out, lse };
  } catch (error) {
    for (const { buffer } of [out, lse]) if (buffer) device.free(buffer);
    throw error;
  } finally {
    commands.free();
    for (const { buffer } of partial) if (buffer) device.free(buffer);
  }
}

/** What the checks of q found. */
interface Call {
  readonly device: CpuDevice;
  readonly q: DeviceTensor;
  readonly batch: number;
  readonly queries: number;
  readonly heads: number;
  readonly channels: number;
  readonly headDimV: number;
  readonly softmaxScale: number;
  readonly isFp8Kvcache: boolean;
}

/** Each kv head with its query heads is an attention of its own. Returns their LSEs, [batch * queries, heads of one]. */
function recordDense(
  recorder: Recorder,
  call: Call,
  kCache: DeviceTensor,
  blockTable: PageTable | undefined,
  cacheSeqlens: Int32Array | undefined,
  meta: FlashMLASchedMeta,
  options: FlashMlaOptions,
  out: DeviceTensor,
  scratch: (shape: readonly number[]) => ResultTensor,
): DeviceTensor[] {
  const { batch, queries, heads, channels, headDimV, softmaxScale, isFp8Kvcache } = call;
  for (const name of ["attnSink", "extraKCache", "extraIndicesInKvcache", "topkLength", "extraTopkLength"] as const) {
    if (options[name] !== undefined)
      throw new ArgumentError(`${name} must be absent without indices: it is for sparse attention`);
  }
  if (!blockTable || !cacheSeqlens) {
    throw new ArgumentError(`${blockTable ? "cacheSeqlens" : "blockTable"} must be given without indices`);
  }
  const { numKvHeads, storage } = checkCache("kCache", call, kCache);
  if (kCache.shape[1] !== 64)
    throw new ShapeError(`kCache.shape[1] = ${kCache.shape[1]} must be 64, the tokens of a page`);
  if (heads % numKvHeads !== 0)
    throw new ArgumentError(`heads of q = ${heads} must be divisible by those of kCache = ${numKvHeads}`);
  requireInt32("cacheSeqlens", cacheSeqlens, batch, ", the batch of q");
  requirePageTable("blockTable", blockTable);
  if (blockTable.shape[0] !== batch)
    throw new ShapeError(`blockTable.shape[0] = ${blockTable.shape[0]} must be ${batch}, the batch of q`);
  const group = heads / numKvHeads;
  const { causal = false } = options;
  const dims = { numHeads: group, kvLoraRank: headDimV, qkRopeHeadDim: channels - headDimV, pageSize: 64 };
  const spec = { ...dims, storage, causal, smScale: softmaxScale, returnLse: true };
  const step: AttentionBatch = {
    ...{ numRows: batch * queries, numSeqs: batch, kvLens: cacheSeqlens, blockTables: blockTable.values },
    queryIndptr: Int32Array.from({ length: batch + 1 }, (_, s) => s * queries),
    ...{ maxPages: blockTable.shape[1], numPages: kCache.shape[0], allowUnseeing: true },
  };
  const config = { batch, queries, heads, numKvHeads, causal, softmaxScale, kCache: kCache.type };
  const [attention] = meta.attentions(config, () => {
    const made = new AbsorbedMla(call.device, spec);
    made.plan(step);
    return [made];
  });
  const rowBytes = isFp8Kvcache ? fp8TokenLayout(dims).numBytes : channels;
  return Array.from({ length: numKvHeads }, (_, head) => {
    const lse = scratch([batch * queries, group]);
    const cache: StridedTensor = {
      ...kCache,
      pointer: kCache.pointer + head * rowBytes * elementBytes(kCache.type),
      shape: [kCache.shape[0], 64, rowBytes],
      strides: [64 * numKvHeads * rowBytes, numKvHeads * rowBytes, 1],
    };
    const headsOf = (tensor: DeviceTensor, width: number) => {
      const pointer = tensor.pointer + head * group * width * 4;
      return { pointer, shape: [batch * queries, group, width], rowStride: heads * width, type: tensor.type };
    };
    attention.record(recorder, {
      q: headsOf(call.q, channels),
      cache: { fused: cache },
      out: headsOf(out, headDimV),
      lse,
    });
    return lse;
  });
}

function recordSparse(
  recorder: Recorder,
  call: Call,
  kCache: DeviceTensor,
  meta: FlashMLASchedMeta,
  options: FlashMlaOptions,
  indices: SlotLists,
  out: DeviceTensor,
  scratch: (shape: readonly number[]) => ResultTensor,
): DeviceTensor[] {
  const { device, batch, queries, heads, channels, headDimV, softmaxScale } = call;
  const { attnSink, extraKCache, extraIndicesInKvcache: extra } = options;
  if (options.causal) throw new ArgumentError("causal must be false with indices");
  if ((extraKCache === undefined) !== (extra === undefined)) {
    throw new ArgumentError(
      `${extra ? "extraKCache" : "extraIndicesInKvcache"} must be given with the other of the two`,
    );
  }
  if (options.extraTopkLength && !extra) throw new ArgumentError("extraTopkLength needs extraIndicesInKvcache");
  if (attnSink) requireTensor("attnSink", attnSink, "f32", [heads]);
  const sources = [
    { names: ["kCache", "indices", "topkLength"], cache: kCache, lists: indices, lengths: options.topkLength },
  ];
  if (extraKCache && extra) {
    const names = ["extraKCache", "extraIndicesInKvcache", "extraTopkLength"];
    sources.push({ names, cache: extraKCache, lists: extra, lengths: options.extraTopkLength });
  }
  const numRows = batch * queries;
  const checked = sources.map(({ names: [cacheName, listName, lengthName], cache, lists, lengths }) => {
    const { numKvHeads, storage } = checkCache(cacheName, call, cache);
    if (numKvHeads !== 1) throw new ArgumentError(`${cacheName}.shape[2] = ${numKvHeads} must be 1 with indices`);
    requireInt32(`${listName}.values`, lists.values, numRows * lists.shape[2], ", as its shape says");
    if (lists.shape[0] !== batch || lists.shape[1] !== queries) {
      throw new ShapeError(`${listName}.shape = ${formatShape(lists.shape)} must be [${batch}, ${queries}, topk]`);
    }
    if (lengths) requireInt32(lengthName, lengths, batch, ", the batch of q");
    const topkLengths = lengths && Int32Array.from({ length: numRows }, (_, row) => lengths[Math.floor(row / queries)]);
    return {
      cache,
      storage,
      lists: { indices: lists.values, topk: lists.shape[2], topkLengths, numSlots: cache.shape[0] * cache.shape[1] },
    };
  });
  const kinds = checked.map(({ cache, lists }) => ({ topk: lists.topk, type: cache.type }));
  const config = { batch, queries, heads, softmaxScale, kinds };
  const attentions = meta.attentions(config, () =>
    checked.map(({ storage, lists }) => {
      const dims = { numHeads: heads, kvLoraRank: headDimV, qkRopeHeadDim: channels - headDimV };
      const attention = new SparseMla(device, { ...dims, storage, smScale: softmaxScale, returnLse: true });
      attention.plan(lists);
      return attention;
    }),
  );
  const q = { ...call.q, shape: [numRows, heads, channels] };
  const states = checked.map(({ cache, lists }, i) => {
    const v = i === 0 ? { ...out, shape: [numRows, heads, headDimV] } : scratch([numRows, heads, headDimV]);
    const s = scratch([numRows, heads]);
    const fused = { ...cache, shape: [lists.numSlots, 1, cache.shape[3]] };
    attentions[i].record(recorder, { q, cache: { fused }, out: v, lse: s });
    return { v, s };
  });
  const merge = { numHeads: heads, headDim: headDimV };
  const [{ v, s }, other] = states;
  if (other) recordMergeStateInPlace(recorder, merge, { v, s, vOther: other.v, sOther: other.s });
  if (attnSink) recordApplySinks(recorder, merge, { out: v, lse: s, sinks: attnSink });
  return [s];
}

/** Key heads and storage of a cache. */
function checkCache(
  name: string,
  { channels, headDimV, isFp8Kvcache }: Call,
  cache: DeviceTensor,
): { readonly numKvHeads: number; readonly storage: ElementStorage | "fp8Token" } {
  requireAxes(name, cache, "pages, pageSize, kvHeads, channels");
  if (!isFp8Kvcache) {
    requireTensor(name, cache, cache.type, ["pages", "pageSize", "kvHeads", channels]);
    return { numKvHeads: cache.shape[2], storage: floatStorage(name, cache) };
  }
  const { numBytes } = fp8TokenLayout({ kvLoraRank: headDimV, qkRopeHeadDim: channels - headDimV });
  requireTensor(name, cache, "u8", ["pages", "pageSize", 1, numBytes]);
  return { numKvHeads: 1, storage: "fp8Token" };
}

/** On the host: the heads of each kv head side by side become [batch, heads, queries], and rows without keys +infinity. */
function writeLse({ device, batch, queries, heads }: Call, parts: readonly DeviceTensor[], lse: DeviceTensor): void {
  const target = device.f32At(lse.pointer, batch * heads * queries);
  const group = heads / parts.length;
  for (const [part, { pointer }] of parts.entries()) {
    const values = device.f32At(pointer, batch * queries * group);
    for (const [at, value] of values.entries()) {
      const [row, head] = [Math.floor(at / group), part * group + (at % group)];
      const [b, i] = [Math.floor(row / queries), row % queries];
      target[(b * heads + head) * queries + i] = value === -Infinity ? Infinity : value;
    }
  }
}

function allocate(device: CpuDevice, label: string, shape: readonly number[]): ResultTensor {
  const numElements = shape.reduce((product, extent) => product * extent, 1);
  const buffer = device.allocate(Math.max(4, numElements * 4), `flash mla ${label}`);
  return { pointer: buffer.pointer, shape, type: "f32", buffer };
}
