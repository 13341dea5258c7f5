/**
 * Cascade attention: sequences that share prefixes read each shared key once for all of them. Every level is a batch of its own over the same
 * query rows, and the levels' results are merged by their LSE. Which sequences share what is for the caller (or a prefix cache) to
 * say. The levels themselves are batchAttention.ts's work, the merge is in src/ops/mergeStates. Source: FlashInfer's
 * MultiLevelCascadeAttentionWrapper (arXiv 2501.01005).
 */
import type { CpuDevice, DeviceBuffer } from "../devices/index.ts";
import { type AttentionBatch, requireInteger, valueDim } from "../ops/attention/index.ts";
import type { RowsTensor } from "../ops/elementwise/index.ts";
import { type MergeStatesSpec, recordApplySinks, recordMergeStateInPlace } from "../ops/mergeStates/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { ArgumentError } from "../tensor/index.ts";
import {
  BatchAttention,
  type BatchAttentionArgs,
  type BatchAttentionSpec,
  type PlanOptions,
  requirePlan,
} from "./batchAttention.ts";
import { type AttentionResult, allocateResult, freeResult, runRecorded } from "./results.ts";

/** The spec of the whole. `causal`, `customMask` and `maskValue` are about the last level: a query sees all keys of the others. */
export type CascadeSpec = Omit<BatchAttentionSpec, "slidingWindow" | "alibi">;

/**
 * Attention over numLevels levels. A sequence of level l stands for all query rows that share the keys it lists, from many sequences or one;
 * the last level has the sequences themselves, with the keys that only they have. The result is that of one call over the keys of all levels, one
 * after the other. A row that some level leaves out, or for which it has no keys, sees only the others.
 */
export class MultiLevelCascadeAttention {
  readonly device: CpuDevice;
  readonly spec: CascadeSpec;
  readonly #levels: readonly BatchAttention[];
  readonly #merge: MergeStatesSpec;
  /** Of the last plan. */
  #numRows: number | undefined;
  #workspace: DeviceBuffer | undefined;

  /** Compiles the kernels. Throws ArgumentError for a spec that is out of range or that has no meaning across levels. */
  constructor(device: CpuDevice, numLevels: number, spec: CascadeSpec) {
    requireInteger("numLevels", numLevels, 1);
    refuseDistances(spec);
    this.device = device;
    this.spec = spec;
    this.#levels = Array.from(
      { length: numLevels },
      (_, level) => new BatchAttention(device, levelSpec(spec, level === numLevels - 1)),
    );
    this.#merge = { numHeads: spec.numQHeads, headDim: valueDim(spec), lseBase: spec.lseBase };
  }

  get numLevels(): number {
    return this.#levels.length;
  }

  /** Changes when commands recorded before the last `plan` cannot be run after it. */
  get recordingKey(): string {
    // The merges and their place in the workspace are recorded for a number of rows.
    return [this.#numRows, this.#workspace?.pointer, ...this.#levels.map(({ recordingKey }) => recordingKey)].join();
  }

  /**
   * Plans a step: a batch for each level, all with the same numRows; not while a run that uses the last plan is under way. In levels before
   * the last, a sequence may have more queries than keys. With `rope`, levels without positionOffsets get them from the lengths of
   * the levels before. Throws ArgumentError naming the level and what does not fit in it, and then nothing is planned.
   */
  plan(levels: readonly AttentionBatch[], options: PlanOptions = {}): void {
    this.#numRows = undefined;
    const last = this.#levels.length - 1;
    if (levels.length !== last + 1) {
      throw new ArgumentError(`levels must be ${last + 1} batches, one for each level, got ${levels.length}`);
    }
    const { numRows } = levels[0];
    for (const [l, batch] of levels.entries()) {
      if (batch.numRows === numRows) continue;
      throw new ArgumentError(`levels[${l}].numRows must be that of levels[0] = ${numRows}, got ${batch.numRows}`);
    }
    const placed = this.spec.rope ? withPositions(levels) : levels;
    for (const [l, batch] of placed.entries()) {
      try {
        this.#levels[l].plan(l === last ? batch : { ...batch, allowUnseeing: true }, options);
      } catch (error) {
        throw error instanceof ArgumentError ? new ArgumentError(`levels[${l}]: ${error.message}`) : error;
      }
    }
    this.#reserveWorkspace(numRows);
    this.#numRows = numRows;
  }

  /**
   * Records the attention of one layer; arguments and result as in BatchAttention. Throws ShapeError or ArgumentError naming the tensor that
   * does not fit.
   */
  record(recorder: Recorder, args: BatchAttentionArgs): AttentionResult {
    const { sinks, lse: givenLse, ...tensors } = args;
    const { numQHeads, sinks: hasSinks, returnLse } = this.spec;
    if (hasSinks && !sinks) throw new ArgumentError("sinks must be given because the spec has sinks");
    if (!hasSinks && sinks) throw new ArgumentError("sinks must be absent: the spec lacks sinks");
    if (!returnLse && givenLse) throw new ArgumentError("lse must be absent: the spec lacks returnLse");
    const numRows = requirePlan(this.#numRows);
    const allocated =
      returnLse && !givenLse ? allocateResult(this.device, "cascade lse", [numRows, numQHeads]) : undefined;
    const lse = givenLse ?? allocated ?? this.#workspaceTensors(numRows).lse;
    let out: AttentionResult["out"] | undefined;
    try {
      out = this.#levels[0].record(recorder, { ...tensors, lse }).out;
      for (const level of this.#levels.slice(1)) {
        const other = this.#workspaceTensors(numRows);
        level.record(recorder, { ...tensors, out: other.v, lse: other.s });
        const states = { v: out, s: lse, vOther: other.v, sOther: other.s, numRows };
        recordMergeStateInPlace(recorder, this.#merge, states);
      }
      if (sinks) recordApplySinks(recorder, this.#merge, { out, lse, sinks, numRows });
      return { out, lse: returnLse ? lse : undefined };
    } catch (error) {
      for (const tensor of [out, allocated]) if (tensor) freeResult(this.device, { out: tensor });
      throw error;
    }
  }

  /** Runs one layer. As `record`; rejects with DeviceError if the device fails. */
  async run(args: BatchAttentionArgs): Promise<AttentionResult> {
    return runRecorded(this.device, (recorder) => this.record(recorder, args));
  }

  /** Gives the device memory of all levels and of their merge back. */
  release(): void {
    this.#numRows = undefined;
    for (const level of this.#levels) level.release();
    if (this.#workspace) this.device.free(this.#workspace);
    this.#workspace = undefined;
  }

  /** Room for the state of one level, and for the LSE of the whole where nobody wants it. Only grows. */
  #reserveWorkspace(numRows: number): void {
    const numBytes = 4 * numRows * this.spec.numQHeads * (valueDim(this.spec) + 2);
    const old = this.#workspace;
    if (old && old.numBytes >= numBytes) return;
    if (old) this.device.free(old);
    this.#workspace = undefined;
    this.#workspace = this.device.allocate(Math.max(numBytes, 2 * (old?.numBytes ?? 0), 64), "cascade workspace");
  }

  #workspaceTensors(numRows: number): { readonly v: RowsTensor; readonly s: RowsTensor; readonly lse: RowsTensor } {
    const { pointer } = requirePlan(this.#workspace);
    const numHeads = numRows * this.spec.numQHeads;
    const rows = { shape: [numRows, this.spec.numQHeads], type: "f32" } as const;
    return {
      s: { pointer, ...rows },
      lse: { pointer: pointer + 4 * numHeads, ...rows },
      v: { pointer: pointer + 8 * numHeads, shape: [...rows.shape, valueDim(this.spec)], type: "f32" },
    };
  }
}

function levelSpec(spec: CascadeSpec, isLast: boolean): BatchAttentionSpec {
  const own = { ...spec, sinks: undefined, returnLse: true };
  return isLast ? own : { ...own, causal: false, customMask: undefined, maskValue: undefined };
}

/** A level knows how far a key is from its own first key, and not how far it is from the query. */
function refuseDistances(spec: BatchAttentionSpec): void {
  const distances = {
    slidingWindow: spec.slidingWindow !== undefined,
    alibi: spec.alibi === true,
    "rope.queries": spec.rope?.queries === true,
  };
  for (const [name, isThere] of Object.entries(distances)) {
    if (!isThere) continue;
    throw new ArgumentError(
      `${name} has no meaning across levels: a level does not know how far its keys are from a query`,
    );
  }
}

/** The levels with the positions of their first keys: those of the level before, plus its lengths. */
function withPositions(levels: readonly AttentionBatch[]): AttentionBatch[] {
  const placed: AttentionBatch[] = [];
  for (const [l, batch] of levels.entries()) {
    const before = placed[l - 1];
    placed.push(
      batch.positionOffsets || !before ? batch : { ...batch, positionOffsets: offsetsAfter(before, batch, l) },
    );
  }
  return placed;
}

function offsetsAfter(before: AttentionBatch, batch: AttentionBatch, level: number): Int32Array {
  const offsets = new Int32Array(batch.numSeqs);
  let parent = 0;
  for (let s = 0; s < batch.numSeqs; s++) {
    const [begin, end] = [batch.queryIndptr[s], batch.queryIndptr[s + 1]];
    while (parent + 1 < before.numSeqs && before.queryIndptr[parent + 1] <= begin) parent++;
    if (begin === end) continue;
    const isInside = parent < before.numSeqs && before.queryIndptr[parent + 1] >= end;
    if (!isInside) {
      throw new ArgumentError(
        `levels[${level}]: rows ${begin} to ${end} of sequence ${s} must lie in one sequence of levels[${level - 1}] to have positions`,
      );
    }
    offsets[s] = (before.positionOffsets?.[parent] ?? 0) + before.kvLens[parent];
  }
  return offsets;
}
