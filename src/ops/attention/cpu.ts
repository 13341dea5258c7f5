/**
 * The two attention kernels: one that takes a query tile over its keys, and one that merges the chunks of tiles that were split. Their
 * parts are in keyLoader.ts, registerTiles.ts and onlineSoftmax.ts; who calls them, with which buffers, is in record.ts.
 */
import { defineKernel, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { type AttentionSpec, defaultSplitSize } from "./contract.ts";
import { blockLoader, loaderBytes } from "./keyLoader.ts";
import { endChunk, finishRow, foldChunk, initRowState, rowState, softmaxRow, zeroRow } from "./onlineSoftmax.ts";
import { itemWords, keyBlock, mergeWords, queryTile } from "./plan.ts";
import { accumulateBlock, rowPitch, scoreBlock } from "./registerTiles.ts";

type Address = Value<"i32">;

/** Words of the state that a partial result carries: largest logit and sum. */
const partialStateBytes = 8;

/** Offsets into the scratch memory of one thread. */
function scratchLayout(spec: AttentionSpec) {
  const rows = (queryTile(spec) * spec.numQHeads) / spec.numKvHeads;
  const rowBytes = rowPitch(spec.headDim);
  const q = 0;
  const acc = q + rows * rowBytes;
  const total = acc + rows * rowBytes;
  const scores = total + rows * rowBytes;
  const states = scores + rows * keyBlock * 4;
  const block = Math.ceil((states + rows * rowState.numBytes) / 64) * 64;
  return { q, acc, total, scores, states, block, numBytes: block + loaderBytes(spec) };
}

/** One task is one work item of the plan with one key/value head. */
export const attentionKernel = defineKernel({
  name: "attention",
  params: {
    items: "pointer",
    q: "pointer",
    kPages: "pointer",
    vPages: "pointer",
    blockTables: "pointer",
    alibiSlopes: "pointer",
    out: "pointer",
    lse: "pointer",
    partialAcc: "pointer",
    partialState: "pointer",
    maxPages: "i32",
    qRowBytes: "i32",
    outRowBytes: "i32",
    kPageBytes: "i32",
    kSlotBytes: "i32",
    kHeadBytes: "i32",
    vPageBytes: "i32",
    vSlotBytes: "i32",
    vHeadBytes: "i32",
    kScale: "f32",
    vScale: "f32",
  },
  scratchBytes: (spec: AttentionSpec) => scratchLayout(spec).numBytes,
  build(k, spec, p) {
    const { headDim, numQHeads, numKvHeads, slidingWindow, softCap, alibi, causal } = spec;
    const { splitSize = defaultSplitSize } = spec;
    const group = numQHeads / numKvHeads;
    const layout = scratchLayout(spec);
    const pitch = rowPitch(headDim);
    const at = (offset: number): Address => k.let(k.scratch.add(offset));
    const [q, acc, total, scores] = [layout.q, layout.acc, layout.total, layout.scores].map(at);
    const [states, block] = [layout.states, layout.block].map(at);
    const loadBlock = blockLoader(k, spec, block);
    const weighted = {
      acc,
      weights: scores,
      values: block,
      alpha: at(layout.states + rowState.alpha),
      alphaStride: rowState.numBytes,
    };
    k.forTasks((task) => {
      const itemIndex = k.let(task.divU(numKvHeads));
      const head = k.let(task.sub(itemIndex.mul(numKvHeads)));
      const item = k.let(p.items.add(itemIndex.mul(itemWords * 4)));
      const word = (index: number): Value<"i32"> => k.let(k.load("i32", item, index * 4));
      const [row, tokens, sequence, position, keyBegin, keyEnd, partialRow] = [0, 1, 2, 3, 4, 5, 6].map(word);
      const rows = k.let(tokens.mul(group));
      const blockTable = k.let(p.blockTables.add(sequence.mul(p.maxPages).shl(2)));
      const keyPages = {
        pages: k.let(p.kPages.add(head.mul(p.kHeadBytes))),
        pageBytes: p.kPageBytes,
        slotBytes: p.kSlotBytes,
      };
      const valuePages = {
        pages: k.let(p.vPages.add(head.mul(p.vHeadBytes))),
        pageBytes: p.vPageBytes,
        slotBytes: p.vSlotBytes,
      };

      const queryRow = k.let(p.q.add(row.mul(p.qRowBytes)).add(head.mul(group * headDim * 4)));
      copyQueries(k, spec, queryRow, p, q, tokens);
      k.for(0, rows, 1, (r) => {
        initRowState(k, states.add(r.mul(rowState.numBytes)));
        zeroRow(k, headDim, k.let(acc.add(r.mul(pitch))));
        zeroRow(k, headDim, k.let(total.add(r.mul(pitch))));
      });

      k.for(keyBegin, keyEnd, keyBlock, (blockStart) => {
        const left = k.let(keyEnd.sub(blockStart));
        const end = k.let(k.select(left.lt(keyBlock), left, keyBlock));
        // The first row of the tile sees the earliest keys.
        const firstVisible =
          slidingWindow === undefined ? k.i32(0) : k.let(position.add(1 - slidingWindow).sub(blockStart));
        const begin = slidingWindow === undefined ? k.i32(0) : k.let(k.select(firstVisible.gt(0), firstVisible, 0));
        loadBlock(keyPages, blockTable, blockStart, begin, end);
        scoreBlock(k, headDim, { q, keys: block, scores, rows }, begin, end);

        let isMasked: Value<"i32"> = left.lt(keyBlock);
        if (causal) isMasked = isMasked.or(blockStart.add(keyBlock - 1).gt(position));
        if (slidingWindow !== undefined) isMasked = isMasked.or(firstVisible.add(tokens).gt(1));
        const needed = k.let(isMasked);
        k.for(0, tokens, 1, (token) => {
          const seen = k.let(position.add(token).add(1).sub(blockStart));
          const visibleEnd = causal ? k.let(k.select(seen.lt(end), seen, end)) : end;
          const visibleBegin = slidingWindow === undefined ? k.i32(0) : k.let(seen.sub(slidingWindow));
          const mask = { needed, begin: visibleBegin, end: visibleEnd };
          const ownKey = k.let(seen.sub(1));
          k.for(0, group, 1, (h) => {
            const r = k.let(token.mul(group).add(h));
            const rowScores = k.let(scores.add(r.mul(keyBlock * 4)));
            const state = k.let(states.add(r.mul(rowState.numBytes)));
            const slopeAt = p.alibiSlopes.add(head.mul(group).add(h).shl(2));
            const bias = alibi ? { slope: k.load("f32", slopeAt).mul(scoreUnit(softCap)), ownKey } : undefined;
            softmaxRow(k, { softCap, bias, mask }, rowScores, state);
          });
        });
        loadBlock(valuePages, blockTable, blockStart, begin, end);
        accumulateBlock(k, headDim, { ...weighted, rows }, begin, end);

        const next = k.let(blockStart.add(keyBlock));
        k.if(next.rem(splitSize).eq(0).or(next.ge(keyEnd)), () => {
          k.for(0, rows, 1, (r) => {
            const [totalRow, accRow] = [total, acc].map((rowsAt) => k.let(rowsAt.add(r.mul(pitch))));
            endChunk(k, headDim, totalRow, accRow, k.let(states.add(r.mul(rowState.numBytes))));
          });
        });
      });

      k.if(
        partialRow.lt(0),
        () =>
          finishTile(k, spec, p, row, tokens, head, (r) => ({
            total: k.let(total.add(r.mul(pitch))),
            state: k.let(states.add(r.mul(rowState.numBytes))),
          })),
        () => {
          const first = k.let(partialRow.add(head.mul(rows)));
          k.for(0, rows, 1, (r) => {
            const partial = k.let(first.add(r));
            const from = k.let(total.add(r.mul(pitch)));
            const to = k.let(p.partialAcc.add(partial.mul(headDim * 4)));
            k.for(0, headDim * 4, k.lanes * 4, (d) => k.store("f32v", to.add(d), k.load("f32v", from.add(d))));
            const state = k.let(states.add(r.mul(rowState.numBytes)));
            const stateTo = k.let(p.partialState.add(partial.mul(partialStateBytes)));
            k.store("f32", stateTo, k.load("f32", state, rowState.totalLargest));
            k.store("f32", stateTo, k.load("f32", state, rowState.totalSum), 4);
          });
        },
      );
    });
  },
});

/** One task is one merge item of the plan with one key/value head: the same sum over chunks, in the same order, as in one task. */
export const attentionMergeKernel = defineKernel({
  name: "attentionMerge",
  params: {
    merges: "pointer",
    partialAcc: "pointer",
    partialState: "pointer",
    out: "pointer",
    lse: "pointer",
    outRowBytes: "i32",
    vScale: "f32",
  },
  scratchBytes: ({ headDim }: AttentionSpec) => headDim * 4 + rowState.numBytes,
  build(k, spec, p) {
    const { headDim, numQHeads, numKvHeads } = spec;
    const group = numQHeads / numKvHeads;
    const total = k.scratch;
    const state = k.let(k.scratch.add(headDim * 4));
    k.forTasks((task) => {
      const mergeIndex = k.let(task.divU(numKvHeads));
      const head = k.let(task.sub(mergeIndex.mul(numKvHeads)));
      const merge = k.let(p.merges.add(mergeIndex.mul(mergeWords * 4)));
      const word = (index: number): Value<"i32"> => k.let(k.load("i32", merge, index * 4));
      const [row, tokens, partialRow, numChunks] = [0, 1, 2, 3].map(word);
      const rows = k.let(tokens.mul(group));
      finishTile(k, spec, p, row, tokens, head, (r) => {
        initRowState(k, state);
        zeroRow(k, headDim, total);
        k.for(0, numChunks, 1, (chunk) => {
          const partial = k.let(partialRow.add(chunk.mul(numKvHeads).add(head).mul(rows)).add(r));
          const from = k.let(p.partialState.add(partial.mul(partialStateBytes)));
          const acc = k.let(p.partialAcc.add(partial.mul(headDim * 4)));
          foldChunk(k, headDim, total, state, {
            acc,
            largest: k.let(k.load("f32", from)),
            sum: k.let(k.load("f32", from, 4)),
          });
        });
        return { total, state };
      });
    });
  },
});

/** The score of a logit of 1: scores are powers of two, but with a soft cap tanh comes before the factor log2 e. */
function scoreUnit(softCap: number | undefined): number {
  return softCap === undefined ? Math.LOG2E : 1 / softCap;
}

/** Rows of a tile in scratch: [token][query head of the group][channel], times the scale of the logits. */
function copyQueries(
  k: KernelBuilder,
  { headDim, numQHeads, numKvHeads, smScale, softCap }: AttentionSpec,
  queryRow: Address,
  { qRowBytes, kScale }: { readonly qRowBytes: Value<"i32">; readonly kScale: Value<"f32"> },
  q: Address,
  tokens: Value<"i32">,
): void {
  const scale = k.let(k.splat(kScale.mul(smScale * scoreUnit(softCap))));
  const group = numQHeads / numKvHeads;
  k.for(0, tokens, 1, (token) => {
    k.for(0, group, 1, (head) => {
      const from = k.let(queryRow.add(token.mul(qRowBytes)).add(head.mul(headDim * 4)));
      const to = k.let(q.add(token.mul(group).add(head).mul(rowPitch(headDim))));
      k.for(0, headDim * 4, k.lanes * 4, (d) => k.store("f32v", to.add(d), k.load("f32v", from.add(d)).mul(scale)));
    });
  });
}

/** Writes the finished rows of a tile to out and lse. */
function finishTile(
  k: KernelBuilder,
  { headDim, numQHeads, numKvHeads, returnLse }: AttentionSpec,
  p: {
    readonly out: Address;
    readonly lse: Address;
    readonly outRowBytes: Value<"i32">;
    readonly vScale: Value<"f32">;
  },
  row: Value<"i32">,
  tokens: Value<"i32">,
  head: Value<"i32">,
  totalOf: (r: Value<"i32">) => { readonly total: Address; readonly state: Address },
): void {
  const group = numQHeads / numKvHeads;
  k.for(0, tokens, 1, (token) => {
    const outRow = k.let(p.out.add(row.add(token).mul(p.outRowBytes)).add(head.mul(group * headDim * 4)));
    const lseRow = k.let(p.lse.add(row.add(token).mul(numQHeads).add(head.mul(group)).shl(2)));
    k.for(0, group, 1, (h) => {
      const { total, state } = totalOf(k.let(token.mul(group).add(h)));
      const lse = returnLse ? k.let(lseRow.add(h.shl(2))) : undefined;
      finishRow(k, headDim, total, state, p.vScale, k.let(outRow.add(h.mul(headDim * 4))), lse);
    });
  });
}
