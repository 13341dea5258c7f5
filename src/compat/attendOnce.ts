/**
 * What the adapters of single functions share: one call of BatchAttention from plan to release. Kernels stay compiled, so only memory
 * is taken and given back; whoever runs many layers on the same lengths holds a BatchAttention instead.
 */
import {
  type AttentionResult,
  BatchAttention,
  type BatchAttentionArgs,
  type BatchAttentionSpec,
  runRecorded,
} from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { AttentionBatch, ElementStorage } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { ArgumentError, type ElementType, ShapeError } from "../tensor/index.ts";

/** What every adapter takes besides the original's arguments. */
export interface CompatOptions {
  /** Where to write; allocated if absent, and then the caller's to free (`ResultTensor.buffer`). */
  readonly out?: RowsTensor;
  /** False leaves page ids unread, for callers who know them to be right. */
  readonly checkPages?: boolean;
}

/** Plans, runs and releases. Rejects with what the three throw. What `before` records runs before the attention. */
export async function attendOnce(
  device: CpuDevice,
  spec: BatchAttentionSpec,
  batch: AttentionBatch,
  args: BatchAttentionArgs,
  { checkPages }: CompatOptions,
  before?: (recorder: Recorder) => void,
): Promise<AttentionResult> {
  const attention = new BatchAttention(device, spec);
  try {
    attention.plan(batch, { checkPages });
    return await runRecorded(device, (recorder) => {
      before?.(recorder);
      return attention.record(recorder, args);
    });
  } finally {
    attention.release();
  }
}

/** The storage of plain floating-point pages. Throws ArgumentError for a tensor of another type. */
export function floatStorage(name: string, { type }: DeviceTensor): ElementStorage {
  switch (type) {
    case "f32":
    case "f16":
    case "bf16":
    case "f8e4m3":
    case "f8e5m2":
      return type;
    default:
      throw new ArgumentError(`${name}.type = ${type} must be a floating-point type of at most 32 bits`);
  }
}

/** Throws ShapeError unless the tensor has so many axes, which `words` names. */
export function requireAxes(name: string, { shape }: DeviceTensor, words: string): void {
  if (shape.length === words.split(", ").length) return;
  throw new ShapeError(`${name}.shape = [${shape.join(", ")}] must be [${words}]`);
}

/** Throws ArgumentError unless the tensor is of this type. */
export function requireType(name: string, { type }: DeviceTensor, expected: ElementType): void {
  if (type !== expected) throw new ArgumentError(`${name}.type = ${type} must be ${expected}`);
}

/** Throws ArgumentError unless the query heads are a multiple of the key/value heads. */
export function requireGroups(numQHeads: number, numKvHeads: number): void {
  if (numKvHeads > 0 && numQHeads % numKvHeads === 0) return;
  throw new ArgumentError(`numQHeads = ${numQHeads} must be divisible by numKvHeads = ${numKvHeads}`);
}

/** Throws ArgumentError unless the numbers that were given are positive. For tuning arguments, which have no other effect here. */
export function requirePositive(numbers: Readonly<Record<string, number | undefined>>): void {
  for (const [name, value] of Object.entries(numbers)) {
    if (value !== undefined && !(value > 0)) throw new ArgumentError(`${name} = ${value} must be positive`);
  }
}

/** JAX's mask value, -0.7 * the largest f32: it hides a key altogether unless every other one of the row is hidden too. */
export const defaultMaskValue = -0.7 * 3.4028234663852886e38;

/** `AttentionSpec.maskValue` for a value that JAX adds to hidden logits: absent where adding it is hiding. */
export function addedMask(maskValue: number): number | undefined {
  return maskValue <= defaultMaskValue ? undefined : maskValue;
}

/** Where an original puts a number in place of hidden logits, they are hidden here. Throws ArgumentError for a number that would not. */
export function requireHiding(maskValue: number | undefined): void {
  if (maskValue === undefined || maskValue <= LEAST_HIDING) return;
  throw new ArgumentError(`maskValue = ${maskValue} must be at most ${LEAST_HIDING}: hidden keys take no part at all`);
}

/** The lowest f16: the largest of the originals' own mask values. */
const LEAST_HIDING = -65504;

/** `AttentionSpec.softCap` for JAX's: cap * tanh(x / cap) is the same for -cap, and 0 is an error. */
export function softCapOf(name: string, softCap: number | undefined): number | undefined {
  if (softCap === 0) throw new ArgumentError(`${name} = 0 must not be 0: leave it out for no cap`);
  return softCap === undefined ? undefined : Math.abs(softCap);
}
