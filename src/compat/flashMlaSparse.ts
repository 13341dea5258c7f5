/**
 * FlashMLA's attention over lists of tokens: each cache with its lists is an attention of its own, and their states are merged under one sink.
 */
import type { SparseMlaLists } from "../attention/index.ts";
import type { ElementStorage } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { recordApplySinks, recordMergeStateInPlace } from "../ops/mergeStates/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { ArgumentError, formatShape, ShapeError } from "../tensor/index.ts";
import { checkFlashMlaCache, type FlashMlaCall, type SlotLists } from "./flashMlaCall.ts";
import { requireInt32 } from "./int32Arrays.ts";
import { requireTensor } from "./mlaPlan.ts";

/** A cache with the lists of its tokens, and the names of the arguments they came in. */
interface Source {
  readonly names: { readonly cache: string; readonly lists: string; readonly lengths: string };
  readonly cache: DeviceTensor;
  readonly lists: SlotLists;
  readonly lengths: Int32Array | undefined;
}

/** A source that passed its checks. */
interface CheckedSource {
  readonly cache: DeviceTensor;
  readonly storage: ElementStorage | "fp8Token";
  readonly lists: SparseMlaLists;
}

/** Records the attention of one layer. Returns the LSEs, [batch * queries, heads]. */
export function recordFlashMlaSparse(
  recorder: Recorder,
  call: FlashMlaCall,
  kCache: DeviceTensor,
  indices: SlotLists,
): DeviceTensor {
  const { batch, queries, heads, channels, headDimV, softmaxScale, options } = call;
  const { attnSink } = options;
  if (options.causal) throw new ArgumentError("causal = true must be false with indices");
  if (attnSink) requireTensor("attnSink", attnSink, "f32", [heads]);
  const sources = sourcesOf(call, kCache, indices).map((source) => checkSource(call, source));
  const dims = { numHeads: heads, kvLoraRank: headDimV, qkRopeHeadDim: channels - headDimV };
  const kinds = sources.map(({ cache, lists }) => ({ topk: lists.topk, type: cache.type }));
  const attentions = call.metadata.sparse(
    { batch, queries, heads, softmaxScale, kinds },
    call.device,
    sources.map(({ storage, lists }) => {
      return { spec: { ...dims, storage, smScale: softmaxScale, returnLse: true }, lists };
    }),
  );
  const numRows = batch * queries;
  const q = { ...call.q, shape: [numRows, heads, channels] };
  const states = sources.map(({ cache, lists }, i) => {
    const shape = [numRows, heads, headDimV];
    const v = i === 0 ? { ...call.out, shape } : call.scratch(shape);
    const s = call.scratch([numRows, heads]);
    const fused = { ...cache, shape: [lists.numSlots, 1, cache.shape[3]] };
    attentions[i].record(recorder, { q, cache: { fused }, out: v, lse: s });
    return { v, s };
  });
  const merge = { numHeads: heads, headDim: headDimV };
  const [{ v, s }, other] = states;
  if (other) recordMergeStateInPlace(recorder, merge, { v, s, vOther: other.v, sOther: other.s });
  if (attnSink) recordApplySinks(recorder, merge, { out: v, lse: s, sinks: attnSink });
  return s;
}

function sourcesOf({ options }: FlashMlaCall, kCache: DeviceTensor, indices: SlotLists): Source[] {
  const { extraKCache, extraIndicesInKvcache, topkLength, extraTopkLength } = options;
  const names = { cache: "kCache", lists: "indices", lengths: "topkLength" };
  const source: Source = { names, cache: kCache, lists: indices, lengths: topkLength };
  if (extraKCache && extraIndicesInKvcache) {
    const extraNames = { cache: "extraKCache", lists: "extraIndicesInKvcache", lengths: "extraTopkLength" };
    return [source, { names: extraNames, cache: extraKCache, lists: extraIndicesInKvcache, lengths: extraTopkLength }];
  }
  if (extraKCache || extraIndicesInKvcache) {
    const missing = extraKCache ? "extraIndicesInKvcache" : "extraKCache";
    throw new ArgumentError(`${missing} must be given with the other of the two`);
  }
  if (extraTopkLength) throw new ArgumentError("extraTopkLength needs extraIndicesInKvcache");
  return [source];
}

function checkSource(call: FlashMlaCall, { names, cache, lists, lengths }: Source): CheckedSource {
  const { batch, queries } = call;
  const { numKvHeads, storage } = checkFlashMlaCache(names.cache, call, cache);
  if (numKvHeads !== 1) throw new ArgumentError(`${names.cache}.shape[2] = ${numKvHeads} must be 1 with indices`);
  const numRows = batch * queries;
  const topk = lists.shape[2];
  requireInt32(`${names.lists}.values`, lists.values, numRows * topk, ", as its shape says");
  if (lists.shape[0] !== batch || lists.shape[1] !== queries) {
    throw new ShapeError(`${names.lists}.shape = ${formatShape(lists.shape)} must be [${batch}, ${queries}, topk]`);
  }
  if (lengths) requireInt32(names.lengths, lengths, batch, ", the batch of q");
  // A length is for all queries of a sequence.
  const topkLengths = lengths && Int32Array.from({ length: numRows }, (_, row) => lengths[Math.floor(row / queries)]);
  const numSlots = cache.shape[0] * cache.shape[1];
  return { cache, storage, lists: { indices: lists.values, topk, topkLengths, numSlots } };
}
