/**
 * Keys and values of single tokens, as the reference of attention sees them: plain rows of pages, the two halves of an MLA token, or
 * latents with their up-projection; rotated where the cache is not. Inputs are decoded numbers (see storageCodec.ts).
 */
import { ArgumentError } from "../../tensor/index.ts";
import { type AttentionBatch, tableOffset } from "./batch.ts";
import { type AttentionSpec, type KeyRopeSpec, valueDim } from "./contract.ts";
import { type LatentRanks, latentLayout, latentTableWords } from "./latent.ts";
import { nhdStrides, type PageStrides } from "./storage.ts";

/** Inputs as plain numbers; pages of any storage type are decoded by the caller, and strides count the decoded numbers. */
export interface AttentionInputs {
  /** [numRows, numQHeads, headDim] */
  readonly q: ArrayLike<number>;
  /** Keys; with mla the ckv rows, with latents those of the keys, [all ranks] a token. */
  readonly kPages: ArrayLike<number>;
  /** Values; with mla the kpe rows, with latents those of the values, [all ranks] a token. */
  readonly vPages: ArrayLike<number>;
  /** Dense pages [page][slot][kv head][channel], or rows, by default; for latents [page][slot][all ranks]. */
  readonly kStrides?: PageStrides;
  readonly vStrides?: PageStrides;
  /** Element of vPages where its first page begins: headDim where keys and values share one array, else 0. */
  readonly vOffset?: number;
  /** [numQHeads]: ALiBi if given. */
  readonly alibiSlopes?: ArrayLike<number>;
  /** [numQHeads]: attention sinks if given. */
  readonly sinks?: ArrayLike<number>;
  /** [positions, rope.dim]: rope.dim / 2 times cos, then as many times sin. For a spec with rope. */
  readonly ropeTable?: ArrayLike<number>;
  /** For a spec with latent. */
  readonly latent?: LatentInputs;
  /** Factor on the logits, for keys stored divided by it. */
  readonly kScale?: number;
  /** Factor on the output, for values stored divided by it. */
  readonly vScale?: number;
}

/** What turns a layer's latents into keys. A token's latents lie group after group. */
export interface LatentInputs extends LatentRanks {
  /** U_k: for each key/value head in order [rank of its group's keys, headDim]. For rebuilt keys. */
  readonly up?: ArrayLike<number>;
  /** [numKvHeads, headDim], for a spec with latent.bias. */
  readonly bias?: ArrayLike<number>;
  /** [windows, capacity, all ranks] latents of the recent tokens, for a spec with latent.recent. */
  readonly recentK?: ArrayLike<number>;
  readonly recentV?: ArrayLike<number>;
}

/** Rows of one token and key/value head. Only tokens below the sequence's kvLen are there. */
export interface CachedTokens {
  key(sequence: number, t: number, kvHead: number): Float64Array;
  value(sequence: number, t: number, kvHead: number): Float64Array;
}

type TokenSpec = Omit<AttentionSpec, "storage">;

/** The tokens of a batch under a spec. Throws ArgumentError for inputs that the spec needs and that are not there. */
export function cachedTokens(spec: TokenSpec, batch: AttentionBatch, inputs: AttentionInputs): CachedTokens {
  const stored = spec.latent
    ? latentTokens(spec, batch, inputs)
    : spec.mla
      ? mlaTokens(spec, spec.mla.ropeDim, batch, inputs)
      : plainTokens(spec, batch, inputs);
  const { rope } = spec;
  if (!rope) return stored;
  return {
    key(s, t, kvHead) {
      return rotate(rope, inputs, stored.key(s, t, kvHead), (batch.positionOffsets?.[s] ?? 0) + t);
    },
    value: stored.value,
  };
}

function plainTokens(spec: TokenSpec, batch: AttentionBatch, inputs: AttentionInputs): CachedTokens {
  const { kPages, vPages, vOffset = 0 } = inputs;
  const { kStrides = dense(spec, spec.headDim), vStrides = dense(spec, valueDim(spec)) } = inputs;
  return {
    key: (s, t, kvHead) => row(kPages, place(spec, batch, kStrides, s, t) + kvHead * kStrides.head, spec.headDim),
    value: (s, t, kvHead) =>
      row(vPages, vOffset + place(spec, batch, vStrides, s, t) + kvHead * vStrides.head, valueDim(spec)),
  };
}

/** Keys are ckv and kpe side by side, values the ckv. */
function mlaTokens(spec: TokenSpec, ropeDim: number, batch: AttentionBatch, inputs: AttentionInputs): CachedTokens {
  const { kPages, vPages, vOffset = 0 } = inputs;
  const { kStrides = dense(spec, valueDim(spec)), vStrides = dense(spec, ropeDim) } = inputs;
  const ckv = (s: number, t: number) => row(kPages, place(spec, batch, kStrides, s, t), valueDim(spec));
  const kpe = (s: number, t: number) => row(vPages, vOffset + place(spec, batch, vStrides, s, t), ropeDim);
  return {
    key: (s, t) => Float64Array.from([...ckv(s, t), ...kpe(s, t)]),
    value: ckv,
  };
}

/** Keys are their latent times U_k, plus a bias; absorbed ones and values are the latents themselves. */
function latentTokens(spec: TokenSpec, batch: AttentionBatch, inputs: AttentionInputs): CachedTokens {
  const { latent, kPages, vPages } = inputs;
  const { headDim, latent: scheme } = spec;
  if (!latent || !scheme) throw new ArgumentError("latent must be given because the spec has latent");
  const { up, bias } = latent;
  if (scheme.keys === "rebuilt" && !up) throw new ArgumentError("latent.up must be given: the keys are rebuilt");
  if (scheme.bias && !bias) throw new ArgumentError("latent.bias must be given because the spec has latent.bias");
  // As f32, one unit is one number.
  const { table, keyRow, valueRow } = latentLayout(latent, { ...spec, storage: "f32", valueStorage: "f32" });
  const { kStrides = dense({ ...spec, numKvHeads: 1 }, keyRow) } = inputs;
  const { vStrides = dense({ ...spec, numKvHeads: 1 }, valueRow) } = inputs;
  const wordOf = (kvHead: number, word: number) => table[kvHead * latentTableWords + word];

  const latentOf = (
    from: { pages: ArrayLike<number>; strides: PageStrides; recent?: ArrayLike<number>; tokenRow: number },
    s: number,
    t: number,
    offset: number,
    rank: number,
  ): Float64Array => {
    const { recent } = batch;
    if (scheme.recent && recent && t >= recent.starts[s]) {
      if (!from.recent) throw new ArgumentError("latent.recentK and recentV must be given because of latent.recent");
      const slot = recent.windows[s] * recent.capacity + (t % recent.capacity);
      return row(from.recent, slot * from.tokenRow + offset, rank);
    }
    return row(from.pages, place(spec, batch, from.strides, s, t) + offset, rank);
  };
  const keys = { pages: kPages, strides: kStrides, recent: latent.recentK, tokenRow: keyRow };
  const values = { pages: vPages, strides: vStrides, recent: latent.recentV, tokenRow: valueRow };
  return {
    key(s, t, kvHead) {
      const [rank, offset, , upAt] = [0, 1, 2, 3].map((word) => wordOf(kvHead, word));
      const x = latentOf(keys, s, t, offset, rank);
      if (scheme.keys === "absorbed" || !up) return x;
      const key = Float64Array.from({ length: headDim }, (_, d) =>
        bias && scheme.bias ? bias[kvHead * headDim + d] : 0,
      );
      for (let r = 0; r < rank; r++) {
        for (let d = 0; d < headDim; d++) key[d] += x[r] * up[upAt + r * headDim + d];
      }
      return key;
    },
    value: (s, t, kvHead) => latentOf(values, s, t, wordOf(kvHead, 5), wordOf(kvHead, 4)),
  };
}

/** Rotates the spec's channels of a row by a position. For a pair (a, b): a cos - b sin, b cos + a sin. */
export function rotate(
  { style, dim, offset = 0 }: KeyRopeSpec,
  { ropeTable }: AttentionInputs,
  x: Float64Array,
  position: number,
): Float64Array<ArrayBuffer> {
  if (!ropeTable) throw new ArgumentError("ropeTable must be given because the spec has rope");
  const half = dim / 2;
  const y = Float64Array.from(x);
  for (let i = 0; i < half; i++) {
    const cos = ropeTable[position * dim + i];
    const sin = ropeTable[position * dim + half + i];
    const a = offset + (style === "halves" ? i : 2 * i);
    const b = offset + (style === "halves" ? i + half : 2 * i + 1);
    y[a] = x[a] * cos - x[b] * sin;
    y[b] = x[b] * cos + x[a] * sin;
  }
  return y;
}

/** Strides of pages whose heads have rows of so many numbers, without anything between them. */
function dense({ pageSize, numKvHeads }: TokenSpec, channels: number): PageStrides {
  return nhdStrides({ pageSize, numKvHeads, headDim: channels });
}

/** Element where token t of a sequence begins: in its page, or for contiguous rows t rows after the sequence's first one. */
function place(
  { pageSize = Infinity }: TokenSpec,
  batch: AttentionBatch,
  strides: PageStrides,
  sequence: number,
  t: number,
): number {
  const pageIndex = Math.floor(t / pageSize);
  const page = batch.blockTables[tableOffset(batch, sequence) + pageIndex];
  return page * strides.page + (t % pageSize) * strides.slot;
}

function row(values: ArrayLike<number>, from: number, length: number): Float64Array {
  const copy = new Float64Array(length);
  for (let d = 0; d < length; d++) copy[d] = values[from + d];
  return copy;
}
