/**
 * Kernel parts for decoding: one token's few query heads meet keys and values where they lie. With so few rows, writing f32 rows to scratch
 * and reading them again (keyLoader.ts, registerTiles.ts) costs as much as the products; here a register is decoded and used at once.
 * Sums run in the same order as over there, so that it does not show in the bits which of the two a row took.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";
import { type AttentionSpec, valueDim } from "./contract.ts";
import { type DirectDecoder, directDecoder, type Lanes, type SpecialFinder } from "./directDecoders.ts";
import { type BlockRange, contiguousTokens } from "./keyLoader.ts";
import { headTiles, keyBlock } from "./plan.ts";
import { rowPitch } from "./registerTiles.ts";
import type { SourceParams } from "./sourceParams.ts";

type Address = Value<"i32">;
type Int = Value<"i32">;

/** Most query heads of a task that take this way: their sums have to fit into registers. */
const mostRows = 8;

const scoreRowBytes = keyBlock * 4;
const addressBytes = keyBlock * 4;

/**
 * Factor of the queries where keys come too small by 2^-112: products of ordinary numbers would be at the lower end of f32 without it.
 * Powers of two change no other bit.
 */
const queryGain = 2 ** 60;

/** Where the rest of the kernel keeps its rows. */
export interface DirectScratch {
  readonly q: Address;
  readonly acc: Address;
  readonly scores: Address;
  readonly alpha: Address;
  readonly alphaStride: number;
  /** `directBytes` of its own. */
  readonly own: Address;
}

/** Blocks of one task of a single token. */
export interface DirectTiles {
  /** To be called when the task's queries are in scratch. */
  begin(): void;
  /**
   * scores[row][j] = dot(q[row], key j) for the keys of a block. Looks at their values on the way, which brings these nearer for the next
   * product. The result is not 0 if a key or value cannot be read this way: then the scores are wrong, and the block must go the other way.
   */
  score(kvHead: Int, range: BlockRange): Int;
  /** acc[row] = acc[row] * alpha[row] + sum over j of weights[row][j] * value j; overwrites the weights. */
  accumulate(range: BlockRange): void;
}

/** Scratch of its own: addresses of a block's keys and values, and scaled queries. */
export function directBytes(spec: AttentionSpec): number {
  return 2 * addressBytes + mostRows * rowPitch(spec.headDim);
}

/** Sets up the direct way, outside of all loops; undefined for specs that always go the other way. */
export function directTiles(
  k: KernelBuilder,
  spec: AttentionSpec,
  p: SourceParams,
  scratch: DirectScratch,
): DirectTiles | undefined {
  const { storage, valueStorage = storage, headDim, numQHeads, numKvHeads, mla, latent, rope } = spec;
  const { heads } = headTiles(spec);
  const isPlain = !mla && !latent && !rope && (numQHeads / numKvHeads) % heads === 0 && heads <= mostRows;
  if (!isPlain || headDim % (2 * k.lanes) !== 0 || valueDim(spec) % (2 * k.lanes) !== 0) return undefined;
  const [keys, values] = [directDecoder(k, storage), directDecoder(k, valueStorage)];
  if (!keys || !values) return undefined;
  const keyRows = scratch.own;
  const valueRows = k.let(scratch.own.add(addressBytes));
  const scaled = k.let(scratch.own.add(2 * addressBytes));
  const queries = keys.gain === 1 ? scratch.q : scaled;
  const score = scorer(k, { spec, keys, values, keyRows, valueRows, queries, scores: scratch.scores, numRows: heads });
  return {
    begin() {
      if (queries === scratch.q) return;
      for (let r = 0; r < heads; r++) {
        k.for(r * rowPitch(headDim), r * rowPitch(headDim) + headDim * 4, k.lanes * 4, (d) =>
          k.store("f32v", scaled.add(d), k.load("f32v", scratch.q.add(d)).mul(queryGain)),
        );
      }
    },
    score(kvHead, range) {
      const { kPageBytes, kSlotBytes, vPageBytes, vSlotBytes } = p;
      const [keyPages, valuePages] = [p.kPages.add(kvHead.mul(p.kHeadBytes)), p.vPages.add(kvHead.mul(p.vHeadBytes))];
      writeAddresses(k, spec, range, keyRows, { pages: k.let(keyPages), pageBytes: kPageBytes, slotBytes: kSlotBytes });
      writeAddresses(k, spec, range, valueRows, {
        pages: k.let(valuePages),
        pageBytes: vPageBytes,
        slotBytes: vSlotBytes,
      });
      return score(range);
    },
    accumulate: (range) => accumulate(k, { spec, values, valueRows, scratch, numRows: heads }, range),
  };
}

/** Writes the addresses of a block's rows. */
function writeAddresses(
  k: KernelBuilder,
  { pageSize = contiguousTokens }: AttentionSpec,
  { blockTable, blockStart, begin, end }: BlockRange,
  to: Address,
  source: { readonly pages: Address; readonly pageBytes: Int; readonly slotBytes: Int },
): void {
  const at = k.var("i32", begin);
  k.while(at.value.lt(end), () => {
    const position = k.let(blockStart.add(at.value));
    const pageIndex = k.let(position.divU(pageSize));
    const slot = k.let(position.sub(pageIndex.mul(pageSize)));
    const page = k.let(k.load("i32", blockTable.add(pageIndex.shl(2))));
    const [left, inPage] = [k.let(end.sub(at.value)), k.let(k.i32(pageSize).sub(slot))];
    const next = k.let(at.value.add(k.select(inPage.lt(left), inPage, left)));
    const row = k.var("i32", source.pages.add(page.mul(source.pageBytes)).add(slot.mul(source.slotBytes)));
    k.for(at.value, next, 1, (j) => {
      k.store("i32", to.add(j.shl(2)), row.value);
      row.set(row.value.add(source.slotBytes));
    });
    at.set(next);
  });
}

interface ScoreTile {
  readonly spec: AttentionSpec;
  readonly keys: DirectDecoder;
  readonly values: DirectDecoder;
  readonly keyRows: Address;
  readonly valueRows: Address;
  readonly queries: Address;
  readonly scores: Address;
  readonly numRows: number;
}

function scorer(k: KernelBuilder, tile: ScoreTile): (range: BlockRange) => Int {
  const { headDim } = tile.spec;
  const { keys, values, numRows } = tile;
  // As many sums as registers allow.
  const keysAtOnce = numRows <= 2 ? 4 : numRows <= 4 ? 2 : 1;
  const registerBytes = k.lanes * 4;
  const unroll = [8, 4].find((steps) => headDim % (steps * k.lanes) === 0) ?? 2;
  const factor = keys.gain === 1 ? 1 : keys.gain / queryGain;
  const dots = (j: Int, numKeys: number, special?: SpecialFinder, specialValues?: SpecialFinder): void => {
    const rows = Array.from({ length: numKeys }, (_, u) => k.let(k.load("i32", tile.keyRows.add(j.shl(2)), u * 4)));
    const sums = Array.from({ length: numRows }, () => rows.map(() => k.var("f32v", 0)));
    for (let u = 0; u < numKeys; u++) {
      approach(
        k,
        k.let(k.load("i32", tile.valueRows.add(j.shl(2)), u * 4)),
        valueDim(tile.spec),
        values,
        specialValues,
      );
    }
    for (const row of rows) if (special) approach(k, row, headDim, keys, special);
    k.for(0, headDim, unroll * k.lanes, (d) => {
      const queryAt = k.let(tile.queries.add(d.shl(2)));
      const keysAt = rows.map((row) => k.let(row.add(d.mul(keys.elementBytes))));
      for (let step = 0; step < unroll; step++) {
        const channels = keysAt.map((at) => keys.decode(at, step * k.lanes * keys.elementBytes));
        for (const [r, row] of sums.entries()) {
          const query = k.let(k.load("f32v", queryAt, r * rowPitch(headDim) + step * registerBytes));
          for (const [u, sum] of row.entries()) sum.set(query.fma(channels[u], sum.value));
        }
      }
    });
    const out = k.let(tile.scores.add(j.shl(2)));
    const flat = sums.flatMap((row, r) => row.map((sum, u) => ({ sum: sum.value, offset: r * scoreRowBytes + u * 4 })));
    for (let i = 0; i < flat.length; i += 4) storeSums(k, out, flat.slice(i, i + 4), factor);
  };
  return ({ begin, end }) => {
    const special = keys.findSpecial?.();
    const specialValues = values.findSpecial?.();
    const whole = k.let(begin.add(end.sub(begin).divU(keysAtOnce).mul(keysAtOnce)));
    k.for(begin, whole, keysAtOnce, (j) => dots(j, keysAtOnce, special, specialValues));
    if (keysAtOnce > 1) k.for(whole, end, 1, (j) => dots(j, 1, special, specialValues));
    const found = [special, specialValues].flatMap((finder) => (finder ? [finder.isFound()] : []));
    return k.let(found.reduce((a, b) => a.or(b), k.i32(0)));
  };
}

/** Looks at all of a value's row, or at least reads from each of its cache lines. */
function approach(
  k: KernelBuilder,
  row: Address,
  channels: number,
  { elementBytes }: DirectDecoder,
  special: SpecialFinder | undefined,
): void {
  if (special) {
    for (let offset = 0; offset < channels * elementBytes; offset += k.lanes * 4) special.look(row, offset);
    return;
  }
  const touched = k.var("i32", 0);
  for (let offset = 0; offset < channels * elementBytes; offset += 64) touched.set(k.load("i32", row, offset));
}

/** Stores the sums of the lanes of up to four vectors, times a power of two. */
function storeSums(
  k: KernelBuilder,
  out: Address,
  sums: readonly { readonly sum: Lanes; readonly offset: number }[],
  factor: number,
): void {
  if (sums.length < 4 || k.lanes !== 4) {
    for (const { sum, offset } of sums) k.store("f32", out, k.sumLanes(sum).mul(factor), offset);
    return;
  }
  const [a, b, c, d] = sums.map(({ sum }) => sum);
  const four = k.let(a.pairAdd(b).pairAdd(c.pairAdd(d)).mul(factor));
  if (sums.every(({ offset }, i) => offset === sums[0].offset + i * 4)) k.store("f32v", out, four, sums[0].offset);
  else for (const [i, { offset }] of sums.entries()) k.store("f32", out, four.lane(i), offset);
}

interface ValueTile {
  readonly spec: AttentionSpec;
  readonly values: DirectDecoder;
  readonly valueRows: Address;
  readonly scratch: DirectScratch;
  readonly numRows: number;
}

function accumulate(k: KernelBuilder, tile: ValueTile, { begin, end }: BlockRange): void {
  const { scratch, valueRows, numRows } = tile;
  const { decode, elementBytes, gain } = tile.values;
  const columns = valueDim(tile.spec);
  const registerBytes = k.lanes * 4;
  const pitch = rowPitch(columns);
  // As many at once as the sums of all rows leave room for.
  const registers = numRows <= 2 && columns % (4 * k.lanes) === 0 ? 4 : 2;
  if (gain !== 1) {
    k.for(0, numRows * scoreRowBytes, registerBytes, (at) =>
      k.store("f32v", scratch.scores.add(at), k.load("f32v", scratch.scores.add(at)).mul(gain)),
    );
  }
  k.for(0, columns, registers * k.lanes, (d) => {
    const accAt = k.let(scratch.acc.add(d.shl(2)));
    const column = k.let(d.mul(elementBytes));
    const sums = Array.from({ length: numRows }, (_, r) => {
      const alpha = k.let(k.loadSplatF32(scratch.alpha, r * scratch.alphaStride));
      return Array.from({ length: registers }, (_, i) =>
        k.var("f32v", k.load("f32v", accAt, r * pitch + i * registerBytes).mul(alpha)),
      );
    });
    const terms = (j: Int, numKeys: number): void => {
      const rowAt = k.let(valueRows.add(j.shl(2)));
      const weightsAt = k.let(scratch.scores.add(j.shl(2)));
      for (let u = 0; u < numKeys; u++) {
        const value = k.let(k.load("i32", rowAt, u * 4).add(column));
        const channels = Array.from({ length: registers }, (_, i) => decode(value, i * k.lanes * elementBytes));
        for (const [r, row] of sums.entries()) {
          const weight = k.let(k.loadSplatF32(weightsAt, r * scoreRowBytes + u * 4));
          for (const [i, sum] of row.entries()) sum.set(weight.fma(channels[i], sum.value));
        }
      }
    };
    const inEights = k.let(begin.add(end.sub(begin).and(-8)));
    k.for(begin, inEights, 8, (j) => terms(j, 8));
    k.for(inEights, end, 1, (j) => terms(j, 1));
    for (const [r, row] of sums.entries()) {
      for (const [i, sum] of row.entries()) k.store("f32v", accAt, sum.value, r * pitch + i * registerBytes);
    }
  });
}
