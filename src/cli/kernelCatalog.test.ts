import { describe, expect, it } from "vitest";
import { detectWasmFeatures, printKernel, wasmModule } from "../kernels/index.ts";
import { kernelCatalog } from "./kernelCatalog.ts";

describe("kernelCatalog", () => {
  it("names every kernel once", () => {
    const names = kernelCatalog.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
  });

  it.each(kernelCatalog)("builds $name as a module that this engine accepts", ({ name, tree }) => {
    const built = tree({});
    expect(printKernel(built)).toContain(`kernel ${name}(`);
    const features = detectWasmFeatures();
    if (features === undefined) throw new Error("no WebAssembly SIMD here");
    expect(WebAssembly.validate(wasmModule(built, features))).toBe(true);
  });

  it("builds another spec", () => {
    const [norm] = kernelCatalog.filter(({ name }) => name === "rmsNorm");
    expect(printKernel(norm.tree({ dim: 64 }))).not.toBe(printKernel(norm.tree({})));
  });
});
