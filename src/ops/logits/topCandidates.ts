/**
 * The kernels of the candidates and the function that records them: the best of every chunk in a sorted list, then one task a row that merges
 * the lists in the order of the chunks.
 */
import { defineKernel, type KernelBuilder, type KernelTarget, type Value } from "../../kernels/index.ts";
import { chunkCount, elementAddress, forRowChunks } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import {
  CANDIDATE_CHUNK_COLUMNS,
  checkTopCandidates,
  type TopCandidatesArgs,
  type TopCandidatesSpec,
} from "./contract.ts";

/** A list entry in memory: the logit (f32), then its column (i32). */
const ENTRY_BYTES = 8;
const ENTRY_TOKEN = 4;

/** Registers compared with the worst candidate at once. */
const NUM_SLOTS = 4;

/** A sorted list in a thread's scratch memory. */
interface CandidateList {
  /** Address of the best entry. */
  readonly first: Value<"i32">;
  /** The value that a further candidate must exceed. */
  readonly threshold: Value<"f32">;
  clear(): void;
  /** Inserts a candidate behind all that are not smaller, and drops the last. `value` must exceed the threshold. */
  insert(value: Value<"f32">, token: Value<"i32">): void;
}

function candidateList(k: KernelBuilder, numCandidates: number): CandidateList {
  const first = k.let(k.scratch.add(ENTRY_BYTES));
  const end = k.let(first.add(numCandidates * ENTRY_BYTES));
  const threshold = k.var("f32", -Infinity);
  return {
    first,
    threshold: threshold.value,
    clear() {
      // Nothing is larger than the entry before the first, so that the search for the place ends there.
      k.store("f32", k.scratch, Infinity);
      k.for(0, numCandidates * ENTRY_BYTES, ENTRY_BYTES, (offset) => {
        const entry = k.let(first.add(offset));
        k.store("f32", entry, -Infinity);
        k.store("i32", entry, -1, ENTRY_TOKEN);
      });
      threshold.set(-Infinity);
    },
    insert(value, token) {
      const place = k.var("i32", end.sub(ENTRY_BYTES));
      k.while(k.load("f32", place.value.sub(ENTRY_BYTES)).lt(value), () => {
        k.store("i32", place.value, k.load("i32", place.value.sub(ENTRY_BYTES)));
        k.store("i32", place.value, k.load("i32", place.value.sub(ENTRY_BYTES), ENTRY_TOKEN), ENTRY_TOKEN);
        place.set(place.value.sub(ENTRY_BYTES));
      });
      k.store("f32", place.value, value);
      k.store("i32", place.value, token, ENTRY_TOKEN);
      threshold.set(k.load("f32", end.sub(ENTRY_BYTES)));
    },
  };
}

const listScratchBytes = ({ numCandidates }: TopCandidatesSpec, _target: KernelTarget): number =>
  (numCandidates + 1) * ENTRY_BYTES;

/** One task is one chunk of one row. */
export const chunkCandidatesKernel = defineKernel({
  name: "chunkCandidates",
  params: { logits: "pointer", workspace: "pointer", length: "i32", stride: "i32" },
  scratchBytes: listScratchBytes,
  build(k, { numCandidates }: TopCandidatesSpec, p) {
    const chunks = chunkCount(k, p.length, CANDIDATE_CHUNK_COLUMNS);
    const list = candidateList(k, numCandidates);
    const registerBytes = k.lanes * 4;
    const blockBytes = registerBytes * NUM_SLOTS;
    forRowChunks(k, p.length, CANDIDATE_CHUNK_COLUMNS, (row, first, count, index) => {
      const logits = elementAddress(k, p.logits, row, p.stride, first);
      const firstOffset = k.let(first.shl(2));
      const insertRange = (start: Value<"i32">, end: Value<"i32">): void =>
        k.for(start, end, 4, (offset) => {
          const value = k.let(k.load("f32", logits.add(offset)));
          k.if(value.gt(list.threshold), () => list.insert(value, k.let(firstOffset.add(offset).shrU(2))));
        });
      list.clear();
      const end = k.let(count.shl(2));
      const blocksEnd = k.let(end.and(-blockBytes));
      k.for(0, blocksEnd, blockBytes, (offset) => {
        const worst = k.let(k.splat(list.threshold));
        const isBetter = Array.from({ length: NUM_SLOTS }, (_, slot) =>
          k.load("f32v", logits.add(offset), slot * registerBytes).gt(worst),
        ).reduce((either, mask) => either.or(mask));
        k.if(isBetter.anyTrue(), () => insertRange(offset, k.let(offset.add(blockBytes))));
      });
      insertRange(blocksEnd, end);

      const out = k.let(
        p.workspace.add(
          row
            .mul(chunks)
            .add(index)
            .mul(numCandidates * ENTRY_BYTES),
        ),
      );
      k.for(0, numCandidates * ENTRY_BYTES, 4, (offset) => {
        k.store("i32", out.add(offset), k.load("i32", list.first.add(offset)));
      });
    });
  },
});

/** One task is one row. */
export const mergeCandidatesKernel = defineKernel({
  name: "mergeCandidates",
  params: { workspace: "pointer", tokens: "pointer", values: "pointer", length: "i32" },
  scratchBytes: listScratchBytes,
  build(k, { numCandidates }: TopCandidatesSpec, p) {
    const rowBytes = k.let(chunkCount(k, p.length, CANDIDATE_CHUNK_COLUMNS).mul(numCandidates * ENTRY_BYTES));
    const list = candidateList(k, numCandidates);
    k.forTasks((row) => {
      list.clear();
      const entries = k.let(p.workspace.add(row.mul(rowBytes)));
      // Loops compare signed numbers, and addresses beyond 2 GiB are negative ones: count the offset.
      k.for(0, rowBytes, ENTRY_BYTES, (offset) => {
        const entry = k.let(entries.add(offset));
        const value = k.let(k.load("f32", entry));
        k.if(value.gt(list.threshold), () => list.insert(value, k.let(k.load("i32", entry, ENTRY_TOKEN))));
      });
      const out = k.let(row.mul(numCandidates * 4));
      for (let i = 0; i < numCandidates; i++) {
        k.store("f32", p.values.add(out), k.load("f32", list.first, i * ENTRY_BYTES), i * 4);
        k.store("i32", p.tokens.add(out), k.load("i32", list.first, i * ENTRY_BYTES + ENTRY_TOKEN), i * 4);
      }
    });
  },
});

/** Records the best candidates of rows. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordTopCandidates(
  { device, commands }: Recorder,
  { numCandidates }: TopCandidatesSpec,
  args: TopCandidatesArgs,
): void {
  const spec = { numCandidates };
  const { numRows, length, stride } = checkTopCandidates(spec, args);
  if (numRows === 0) return;
  const workspace = args.workspace.pointer;
  commands.launch(
    device.compile(chunkCandidatesKernel, spec),
    { logits: args.logits.pointer, workspace, length, stride },
    numRows * Math.ceil(length / CANDIDATE_CHUNK_COLUMNS),
  );
  commands.launch(
    device.compile(mergeCandidatesKernel, spec),
    { workspace, tokens: args.tokens.pointer, values: args.values.pointer, length },
    numRows,
  );
}
