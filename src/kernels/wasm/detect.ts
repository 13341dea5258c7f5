/** What this WebAssembly engine can do, found by asking it to validate a small kernel. */

import { defineKernel } from "../builder.ts";
import { compileWasm } from "./compile.ts";
import type { WasmFeatures } from "./features.ts";

const probe = defineKernel({
  name: "probe",
  params: { x: "pointer" },
  build(k, _spec: null, { x }) {
    const v = k.load("f32v", x);
    k.store("f32v", x, v.fma(v, v));
  },
});

const accepts = (features: WasmFeatures): boolean => WebAssembly.validate(compileWasm(probe, null, features).bytes);

/** Fixed-width SIMD itself is required: `undefined` means that this engine lacks it. */
export function detectWasmFeatures(): WasmFeatures | undefined {
  if (!accepts({ relaxedSimd: false, sharedMemory: false })) return undefined;
  return {
    relaxedSimd: accepts({ relaxedSimd: true, sharedMemory: false }),
    sharedMemory: typeof SharedArrayBuffer !== "undefined" && accepts({ relaxedSimd: false, sharedMemory: true }),
  };
}
