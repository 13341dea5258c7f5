/** Runs a rotary golden case on the CPU device, its cos and sin read from the table that the kernel uses. */
import type { CpuDevice } from "../src/devices/index.ts";
import type { RopeSpec } from "../src/ops/rope/contract.ts";
import type { GoldenCase } from "./case.ts";

export async function ropeOnCpu(
  _spec: RopeSpec,
  _golden: GoldenCase,
  _device: CpuDevice,
  _seqLen?: number,
): Promise<Record<string, ArrayLike<number>>> {
  throw new Error("rope is not yet on the cpu");
}
