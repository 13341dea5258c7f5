/** Runs the attention call of a golden case on the CPU device. Page types without a kernel are refused, not widened. */
import type { CpuDevice } from "../src/devices/index.ts";
import type { AttentionCall } from "./attention.ts";

export async function attentionOnCpu(
  call: AttentionCall,
  _device: CpuDevice,
): Promise<{ out: Float32Array; lse: Float32Array }> {
  throw new Error(`attention over ${call.storage} pages is not yet on the cpu`);
}
