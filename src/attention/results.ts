/** Results of attention calls: the tensors that a call allocates when it is given none, and who frees them. */
import type { CpuDevice, DeviceBuffer } from "../devices/index.ts";
import type { RowsTensor } from "../ops/elementwise/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { numElements } from "../tensor/index.ts";

/** A result. Whoever receives one with a `buffer` frees it: `device.free(tensor.buffer)`. */
export interface ResultTensor extends RowsTensor {
  /** Memory that the call allocated for it; absent where the caller gave the tensor. */
  readonly buffer?: DeviceBuffer;
}

/** Tensors that were not given are allocated, and then the caller's to free: `freeResult`, or each by its `buffer`. */
export interface AttentionResult {
  /** [numRows, numQHeads, headDimV]; zeros for rows past the batch and rows that see no key. */
  readonly out: ResultTensor;
  /** [numRows, numQHeads], -infinity for such rows; there if the spec has returnLse. */
  readonly lse?: ResultTensor;
}

/** An f32 tensor of zeros in a buffer of its own. Throws CapacityError when there is no room. */
export function allocateResult(device: CpuDevice, label: string, shape: readonly number[]): ResultTensor {
  const buffer = device.allocate(Math.max(4 * numElements(shape), 4), label);
  return { pointer: buffer.pointer, shape, type: "f32", buffer };
}

/**
 * Where the results of a call go: to the tensors that the caller gave, whose memory stays the caller's even if it came from another call,
 * and to allocated ones. `lse` is left out without a shape. Nothing stays allocated if there is no room for both.
 */
export function resultsOf(
  device: CpuDevice,
  label: string,
  given: { readonly out?: ResultTensor; readonly lse?: ResultTensor },
  outShape: readonly number[],
  lseShape: readonly number[] | undefined,
): AttentionResult {
  const out = given.out ? withoutBuffer(given.out) : allocateResult(device, `${label} out`, outShape);
  if (lseShape === undefined) return { out };
  try {
    return { out, lse: given.lse ? withoutBuffer(given.lse) : allocateResult(device, `${label} lse`, lseShape) };
  } catch (error) {
    freeResult(device, { out });
    throw error;
  }
}

function withoutBuffer(tensor: ResultTensor): ResultTensor {
  if (tensor.buffer === undefined) return tensor;
  const { buffer: _, ...borrowed } = tensor;
  return borrowed;
}

/** Frees what a call allocated for its result; tensors that the caller gave stay. */
export function freeResult(device: CpuDevice, { out, lse }: AttentionResult): void {
  for (const tensor of [out, lse]) if (tensor?.buffer) device.free(tensor.buffer);
}

/** Records one call and runs it; nothing stays allocated if either fails. Rejects with what they throw. */
export async function runRecorded<Result extends AttentionResult>(
  device: CpuDevice,
  record: (recorder: Recorder) => Result,
): Promise<Result> {
  const commands = device.commands();
  let result: Result | undefined;
  try {
    result = record({ device, commands });
    await device.run(commands);
    return result;
  } catch (error) {
    if (result) freeResult(device, result);
    throw error;
  } finally {
    commands.free();
  }
}
