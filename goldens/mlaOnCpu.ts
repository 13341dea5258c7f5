/** Runs the golden cases of multi-head latent attention on the CPU device. */
import type { MlaModuleSpec, MlaModuleWeights } from "../src/attention/mla/index.ts";
import type { CpuDevice } from "../src/devices/index.ts";
import type { NumberArray } from "./inputs.ts";
import type { PagedMlaCall, RaggedPrefillCall, SparseMlaCall } from "./mla.ts";

type Outputs = Record<string, ArrayLike<number>>;

export async function mlaOnCpu(_call: PagedMlaCall, _device: CpuDevice): Promise<Outputs> {
  throw new Error("latent attention does not run on the cpu yet");
}
export async function prefillOnCpu(_call: RaggedPrefillCall, _device: CpuDevice): Promise<Outputs> {
  throw new Error("latent attention does not run on the cpu yet");
}
export async function sparseOnCpu(_call: SparseMlaCall, _device: CpuDevice): Promise<Outputs> {
  throw new Error("latent attention does not run on the cpu yet");
}
export async function moduleOnCpu(
  _spec: MlaModuleSpec,
  _weights: MlaModuleWeights,
  _hidden: NumberArray,
  _positions: Int32Array,
  _device: CpuDevice,
): Promise<Outputs> {
  throw new Error("latent attention does not run on the cpu yet");
}
