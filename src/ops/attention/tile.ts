/**
 * Kernel parts: the query tile of a task: which heads it has, its queries in scratch, and where its finished rows go. Rows of a tile are
 * [token][query head].
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";
import { rotateRow } from "../rope/cpu.ts";
import { type AttentionSpec, valueDim } from "./contract.ts";
import { clearTail, type Extent, f32Bytes, roundUp } from "./dims.ts";
import { latentTableWords } from "./latent.ts";
import { finishRow } from "./onlineSoftmax.ts";
import { headTiles, sequenceWord, sequenceWords } from "./plan.ts";
import { rowPitch } from "./registerTiles.ts";

type Address = Value<"i32">;
type Int = Value<"i32">;

/** Parameters that both attention kernels need to place their rows. */
export const outputParams = {
  latentTable: "pointer",
  sinks: "pointer",
  out: "pointer",
  lse: "pointer",
  partialAcc: "pointer",
  partialState: "pointer",
  outRowBytes: "i32",
  vScale: "f32",
} as const;

export type OutputParams = {
  readonly [N in keyof typeof outputParams]: Value<(typeof outputParams)[N] extends "f32" ? "f32" : "i32">;
};

/** Words of the state that a partial result carries: largest logit and sum. */
export const partialStateBytes = 8;

/** Bytes of one row of partial sums. */
export function partialRowBytes(spec: AttentionSpec): number {
  return Math.ceil(valueDim(spec) / 16) * 64;
}

/** The query heads of one task. */
export interface HeadPlace {
  readonly kvHead: Int;
  readonly firstQHead: Int;
  /** Query heads. */
  readonly heads: Int;
  /** Channels of an output head. */
  readonly valueChannels: Extent;
  /** Bytes from the beginning of an output row to the first head, and from one head to the next. */
  readonly outFirst: Int;
  readonly outHead: Extent;
}

/** The heads of task `part` of an item: 0 up to tasksPerItem. */
export function headPlace(k: KernelBuilder, spec: AttentionSpec, latentTable: Address, part: Int): HeadPlace {
  const { numQHeads, numKvHeads } = spec;
  const group = numQHeads / numKvHeads;
  const { tiles, heads: full } = headTiles(spec);
  const kvHead = k.let(part.divU(tiles));
  const inGroup = k.let(part.sub(kvHead.mul(tiles)).mul(full));
  const firstQHead = k.let(kvHead.mul(group).add(inGroup));
  const left = k.let(k.i32(group).sub(inGroup));
  const heads = group % full === 0 ? k.i32(full) : k.let(k.select(left.lt(full), left, full));
  const place = { kvHead, firstQHead, heads };
  if (!spec.latent) {
    const outHead = valueDim(spec) * 4;
    return { ...place, valueChannels: valueDim(spec), outHead, outFirst: k.let(firstQHead.mul(outHead)) };
  }
  const entry = k.let(latentTable.add(kvHead.mul(latentTableWords * 4)));
  const rankV = k.let(k.load("i32", entry, 4 * 4));
  const outHead = k.let(rankV.shl(2));
  const outFirst = k.let(
    k
      .load("i32", entry, 7 * 4)
      .shl(2)
      .add(inGroup.mul(outHead)),
  );
  return { ...place, valueChannels: rankV, outHead, outFirst };
}

/** Runs the body for each row of a tile: its token, its head of the task, and its number. */
export function forRows(
  k: KernelBuilder,
  tokens: Int,
  heads: Int,
  body: (token: Int, head: Int, row: Int) => void,
): void {
  k.for(0, tokens, 1, (token) => {
    const first = k.let(token.mul(heads));
    k.for(0, heads, 1, (head) => body(token, head, k.let(first.add(head))));
  });
}

/** The score of a logit of 1: scores are powers of two, but with a soft cap tanh comes before the factor log2 e. */
export function scoreUnit(softCap: number | undefined): number {
  return softCap === undefined ? Math.LOG2E : 1 / softCap;
}

/** Copies the queries of a tile to scratch, times the scale of the logits, rotated where the spec says so. */
export function copyQueries(
  k: KernelBuilder,
  { headDim, smScale, softCap, rope }: AttentionSpec,
  from: {
    readonly queries: Address;
    readonly rowBytes: Int;
    readonly kScale: Value<"f32">;
    /** Channels of a query that mean something; the rest of its registers becomes zero. */
    readonly channels: Extent;
    /** cos and sin of a token of the tile, if queries rotate. */
    readonly anglesOf: (token: Int) => Address;
  },
  q: Address,
  tokens: Int,
  heads: Int,
): void {
  const scale = k.let(k.splat(from.kScale.mul(smScale * scoreUnit(softCap))));
  forRows(k, tokens, heads, (token, head, r) => {
    const query = k.let(from.queries.add(token.mul(from.rowBytes)).add(head.mul(headDim * 4)));
    const to = k.let(q.add(r.mul(rowPitch(headDim))));
    k.for(0, f32Bytes(k, roundUp(k, from.channels, k.lanes)), k.lanes * 4, (d) =>
      k.store("f32v", to.add(d), k.load("f32v", query.add(d)).mul(scale)),
    );
    clearTail(k, to, from.channels);
    if (!rope?.queries) return;
    const { dim, style, offset = 0 } = rope;
    rotateRow(k, { rotaryDim: dim, style }, k.let(to.add(offset * 4)), from.anglesOf(token));
  });
}

/** Writes the finished rows of a tile to out and lse. `totalOf` gives the total and the state of a row. */
export function finishTile(
  k: KernelBuilder,
  { numQHeads, returnLse, lseBase = "e", sinks }: AttentionSpec,
  p: OutputParams,
  place: HeadPlace,
  row: Int,
  tokens: Int,
  totalOf: (r: Int) => { readonly total: Address; readonly state: Address },
): void {
  const { firstQHead, heads, valueChannels, outFirst, outHead } = place;
  forRows(k, tokens, heads, (token, head, r) => {
    const out = k.let(p.out.add(row.add(token).mul(p.outRowBytes)).add(outFirst).add(head.mul(outHead)));
    const qHead = k.let(firstQHead.add(head));
    const lse = k.let(p.lse.add(row.add(token).mul(numQHeads).add(qHead).shl(2)));
    const { total, state } = totalOf(r);
    finishRow(k, valueChannels, total, state, {
      vScale: p.vScale,
      out,
      ...(sinks ? { sink: k.let(k.load("f32", p.sinks.add(qHead.shl(2))).mul(Math.LOG2E)) } : {}),
      ...(returnLse ? { lse: { address: lse, base: lseBase } } : {}),
    });
  });
}

/** Reads what the plan says of a sequence. */
export function sequenceReader(
  k: KernelBuilder,
  sequences: Address,
  sequence: Int,
): (word: keyof typeof sequenceWord) => Int {
  const at = k.let(sequences.add(sequence.mul(sequenceWords * 4)));
  return (word) => k.let(k.load("i32", at, sequenceWord[word] * 4));
}
