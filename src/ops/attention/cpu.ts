/**
 * The two attention kernels: one that takes a query tile over its keys, and one that merges the chunks of tiles that were split. Their
 * parts are in tile.ts, blockSources.ts, registerTiles.ts and onlineSoftmax.ts; who calls them, with which buffers, is in record.ts.
 */
import { defineKernel, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { blockBytes, blockSource, valuePitch } from "./blockSources.ts";
import { type AttentionSpec, defaultSplitSize, valueDim } from "./contract.ts";
import { type Extent, f32Bytes, roundUp, zeroRow } from "./dims.ts";
import { directBytes, directTiles } from "./directTiles.ts";
import { endChunk, foldChunk, initRowState, type KeyMask, rowState, softmaxRow } from "./onlineSoftmax.ts";
import { headTiles, itemWords, keyBlock, mergeWords, queryTile, tasksPerItem } from "./plan.ts";
import { accumulateBlock, rowPitch, scoreBlock } from "./registerTiles.ts";
import { sourceParams } from "./sourceParams.ts";
import {
  copyQueries,
  finishTile,
  headPlace,
  outputParams,
  partialRowBytes,
  partialStateBytes,
  scoreUnit,
  sequenceReader,
} from "./tile.ts";
import { blockVisibility, maskBits } from "./visibility.ts";

type Address = Value<"i32">;
type Int = Value<"i32">;

/** Offsets into the scratch memory of one thread. */
function scratchLayout(spec: AttentionSpec) {
  const rows = queryTile(spec) * headTiles(spec).heads;
  const q = 0;
  const acc = q + rows * rowPitch(spec.headDim);
  const total = acc + rows * rowPitch(valueDim(spec));
  const scores = total + rows * rowPitch(valueDim(spec));
  const states = scores + rows * keyBlock * 4;
  const block = Math.ceil((states + rows * rowState.numBytes) / 64) * 64;
  const direct = block + blockBytes(spec);
  return { q, acc, total, scores, states, block, direct, numBytes: direct + directBytes(spec) };
}

/** One task is one work item of the plan with some query heads of one key/value head. */
export const attentionKernel = defineKernel({
  name: "attention",
  params: {
    ...outputParams,
    ...sourceParams,
    items: "pointer",
    sequences: "pointer",
    blockTables: "pointer",
    masks: "pointer",
    q: "pointer",
    alibiSlopes: "pointer",
    qRowBytes: "i32",
    kScale: "f32",
  },
  scratchBytes: (spec: AttentionSpec) => scratchLayout(spec).numBytes,
  build(k, spec, p) {
    const { headDim, softCap, alibi, splitSize = defaultSplitSize } = spec;
    const layout = scratchLayout(spec);
    const at = (offset: number): Address => k.let(k.scratch.add(offset));
    const [q, acc, total, scores] = [layout.q, layout.acc, layout.total, layout.scores].map(at);
    const [states, block, alpha] = [layout.states, layout.block, layout.states + rowState.alpha].map(at);
    const pitch = rowPitch(valueDim(spec));
    const stateOf = (r: Int): Address => k.let(states.add(r.mul(rowState.numBytes)));
    const rowsOf = (r: Int): { acc: Address; total: Address } => {
      const offset = k.let(r.mul(pitch));
      return { acc: k.let(acc.add(offset)), total: k.let(total.add(offset)) };
    };
    const sourceOf = blockSource(k, spec, p, block);
    const ownRows = { q, acc, scores, alpha, alphaStride: rowState.numBytes, own: at(layout.direct) };
    const direct = directTiles(k, spec, p, ownRows);
    k.forTasks((task) => {
      const itemIndex = k.let(task.divU(tasksPerItem(spec)));
      const item = k.let(p.items.add(itemIndex.mul(itemWords * 4)));
      const [row, tokens, sequence, position, keyBegin, keyEnd, partialRow] = [0, 1, 2, 3, 4, 5, 6].map((index) =>
        k.let(k.load("i32", item, index * 4)),
      );
      const place = headPlace(k, spec, p.latentTable, k.let(task.sub(itemIndex.mul(tasksPerItem(spec)))));
      const { kvHead, firstQHead, heads, valueChannels } = place;
      const rows = k.let(tokens.mul(heads));
      const ofSequence = sequenceReader(k, p.sequences, sequence);
      const blockTable = k.let(p.blockTables.add(ofSequence("pageIds").shl(2)));
      const positionOffset = ofSequence("positionOffset");
      const [recentStart, window] = [ofSequence("recentStart"), ofSequence("window")];
      const source = sourceOf(kvHead, { blockTable, positionOffset, recentStart, window });
      const maskRows = spec.customMask
        ? {
            masks: k.let(p.masks.add(ofSequence("maskByte"))),
            kvLen: ofSequence("kvLen"),
            firstRow: ofSequence("firstRow"),
          }
        : undefined;

      const ownPosition = k.let(positionOffset.add(position));
      const from = {
        queries: k.let(p.q.add(row.mul(p.qRowBytes)).add(firstQHead.mul(headDim * 4))),
        rowBytes: p.qRowBytes,
        kScale: p.kScale,
        channels: source.keyChannels,
        // Queries before the first key see nothing: position 0 will do for them.
        anglesOf: (token: Value<"i32">) => {
          const at = k.let(ownPosition.add(token));
          return k.let(p.ropeTable.add(k.select(at.gt(0), at, 0).mul((spec.rope?.dim ?? 0) * 4)));
        },
      };
      copyQueries(k, spec, from, q, tokens, heads);
      direct?.begin();
      k.for(0, rows, 1, (r) => {
        initRowState(k, stateOf(r));
        zeroRow(k, rowsOf(r).acc, valueChannels);
        zeroRow(k, rowsOf(r).total, valueChannels);
      });

      k.for(keyBegin, keyEnd, keyBlock, (blockStart) => {
        const left = k.let(keyEnd.sub(blockStart));
        const end = k.let(k.select(left.lt(keyBlock), left, keyBlock));
        const visible = blockVisibility(k, spec, { blockStart, left, end, position, tokens });
        const range = { blockTable, blockStart, begin: visible.begin, end };
        // Whether the block has to go through scratch: with several tokens, or if the direct way met what it cannot read.
        const inScratch = k.var("i32", 1);
        if (direct) k.if(tokens.eq(1), () => inScratch.set(direct.score(kvHead, range)));
        k.if(inScratch.value, () => {
          source.loadKeys(range);
          const channels = { channels: source.keyChannels, maxChannels: headDim };
          scoreBlock(k, channels, { q, keys: block, scores, rows }, range.begin, end);
        });

        k.for(0, tokens, 1, (token) => {
          const bits = maskRows && maskBits(k, maskRows, k.let(row.add(token)), blockStart);
          const mask: KeyMask = { ...visible.maskOf(token), bits };
          const ownKey = k.let(position.add(token).sub(blockStart));
          const first = k.let(token.mul(heads));
          k.for(0, heads, 1, (head) => {
            const r = k.let(first.add(head));
            const slope = k.load("f32", p.alibiSlopes.add(firstQHead.add(head).shl(2))).mul(scoreUnit(softCap));
            const bias = alibi ? { slope, ownKey } : undefined;
            softmaxRow(k, { softCap, bias, mask }, k.let(scores.add(r.mul(keyBlock * 4))), stateOf(r));
          });
        });
        const accumulateInScratch = (): void => {
          source.loadValues?.(range);
          const values = { values: block, valuePitch: valuePitch(spec), columns: valueChannels };
          const sums = {
            acc,
            weights: scores,
            maxColumns: valueDim(spec),
            alpha,
            alphaStride: rowState.numBytes,
            rows,
          };
          accumulateBlock(k, { ...values, ...sums }, range.begin, end);
        };
        if (direct) k.if(inScratch.value, accumulateInScratch, () => direct.accumulate(range));
        else accumulateInScratch();

        const next = k.let(blockStart.add(keyBlock));
        k.if(next.rem(splitSize).eq(0).or(next.ge(keyEnd)), () => {
          k.for(0, rows, 1, (r) => endChunk(k, valueChannels, rowsOf(r).total, rowsOf(r).acc, stateOf(r)));
        });
      });

      k.if(
        partialRow.lt(0),
        () => finishTile(k, spec, p, place, row, tokens, (r) => ({ total: rowsOf(r).total, state: stateOf(r) })),
        () => {
          const first = k.let(partialRow.add(tokens.mul(firstQHead)));
          k.for(0, rows, 1, (r) => {
            const partial = k.let(first.add(r));
            const to = k.let(p.partialAcc.add(partial.mul(partialRowBytes(spec))));
            copyRow(k, rowsOf(r).total, to, valueChannels);
            const stateTo = k.let(p.partialState.add(partial.mul(partialStateBytes)));
            k.store("f32", stateTo, k.load("f32", stateOf(r), rowState.totalLargest));
            k.store("f32", stateTo, k.load("f32", stateOf(r), rowState.totalSum), 4);
          });
        },
      );
    });
  },
});

/** One task is one merge item of the plan with some query heads: the same sum over chunks, in the same order, as in one task. */
export const attentionMergeKernel = defineKernel({
  name: "attentionMerge",
  params: { ...outputParams, merges: "pointer" },
  scratchBytes: (spec: AttentionSpec) => rowPitch(valueDim(spec)) + rowState.numBytes,
  build(k, spec, p) {
    const total = k.scratch;
    const state = k.let(k.scratch.add(rowPitch(valueDim(spec))));
    k.forTasks((task) => {
      const mergeIndex = k.let(task.divU(tasksPerItem(spec)));
      const merge = k.let(p.merges.add(mergeIndex.mul(mergeWords * 4)));
      const [row, tokens, partialRow, numChunks] = [0, 1, 2, 3].map((index) => k.let(k.load("i32", merge, index * 4)));
      const place = headPlace(k, spec, p.latentTable, k.let(task.sub(mergeIndex.mul(tasksPerItem(spec)))));
      const first = k.let(partialRow.add(tokens.mul(place.firstQHead)));
      finishTile(k, spec, p, place, row, tokens, (r) => {
        initRowState(k, state);
        zeroRow(k, total, place.valueChannels);
        k.for(0, numChunks, 1, (chunk) => {
          const partial = k.let(first.add(chunk.mul(tokens).mul(spec.numQHeads)).add(r));
          const from = k.let(p.partialState.add(partial.mul(partialStateBytes)));
          foldChunk(k, place.valueChannels, total, state, {
            acc: k.let(p.partialAcc.add(partial.mul(partialRowBytes(spec)))),
            largest: k.let(k.load("f32", from)),
            sum: k.let(k.load("f32", from, 4)),
          });
        });
        return { total, state };
      });
    });
  },
});

function copyRow(k: KernelBuilder, from: Address, to: Address, channels: Extent): void {
  k.for(0, f32Bytes(k, roundUp(k, channels, k.lanes)), k.lanes * 4, (d) =>
    k.store("f32v", to.add(d), k.load("f32v", from.add(d))),
  );
}
