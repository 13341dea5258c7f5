import binaryen from "binaryen";
import { describe, expect, it } from "vitest";
import { KernelBuilder, printKernel, wasmModule, wasmTarget } from "../../src/kernels/index.ts";
import { everyKernel } from "./everyKernel.ts";

const kernels = await everyKernel();

describe("the kernels of src/ops", () => {
  it("are found", () => {
    expect(kernels.map(({ name }) => name)).toEqual(
      expect.arrayContaining(["attention", "matmulF32", "matmulIntegerDirect", "rmsNorm", "rope"]),
    );
  });
});

describe.each(kernels)("$name", ({ definition, specs }) => {
  it("becomes modules that binaryen finds valid", () => {
    for (const spec of specs) {
      const tree = KernelBuilder.tree(definition, spec, wasmTarget);
      for (const features of [
        { relaxedSimd: false, sharedMemory: false },
        { relaxedSimd: true, sharedMemory: true },
      ]) {
        const module = binaryen.readBinary(wasmModule(tree, features));
        module.setFeatures(binaryen.Features.All);
        expect(module.validate(), JSON.stringify({ spec, features })).toBe(1);
        module.dispose();
      }
    }
  });

  // A register of another width must come from the target alone, or no other back end could take the kernel.
  it.each([8])("is a tree for %i lanes too", (lanes) => {
    for (const spec of specs) {
      const tree = KernelBuilder.tree(definition, spec, { lanes });
      expect(printKernel(tree)).toContain(`kernel ${definition.name}(`);
    }
  });
});
