/**
 * Loading a model that is not as it should be: the error names what is wrong, and nothing stays open. Loading sound ones gives memory back.
 */

import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterEach, describe, expect, it, vi } from "vitest";
import { CpuDevice } from "../../src/devices/index.ts";
import { locate } from "../../src/models/formats/file.node.ts";
import { type LoadedModel, type LoadModelOptions, loadModel } from "../../src/models/loadModel.ts";
import { CapacityError, DeviceError, FormatError } from "../../src/tensor/index.ts";
import { type CountingFolder, checkpointFiles, memoryFolder, quantizedGguf } from "./randomModels.ts";
import { randomIds, runAlone } from "./schedules.ts";

const options = {
  threads: 2,
  maxNumTokens: 64,
  pageSize: 8,
  cacheType: "f32",
  activations: "f32",
  maxNumBatchedTokens: 64,
} as const satisfies LoadModelOptions;

afterEach(() => vi.restoreAllMocks());

/** Loads, and gives the error together with the devices that were made on the way. */
async function refusal(
  folder: CountingFolder,
  changes: Partial<LoadModelOptions> = {},
): Promise<{ error: unknown; devices: CpuDevice[] }> {
  const devices: CpuDevice[] = [];
  const create = CpuDevice.create.bind(CpuDevice);
  vi.spyOn(CpuDevice, "create").mockImplementation(async (deviceOptions) => {
    const device = await create(deviceOptions);
    devices.push(device);
    return device;
  });
  const outcome = await loadModel(folder, undefined, { ...options, ...changes }).then(
    async ({ runner }: LoadedModel) => {
      await runner.close();
      return new Error("the model was loaded");
    },
    (error: unknown) => error,
  );
  return { error: outcome, devices };
}

/** No file is open, and every device that was made refuses to run. */
async function expectNothingLeft(folder: CountingFolder, devices: readonly CpuDevice[]): Promise<void> {
  expect(folder.numOpen()).toBe(0);
  for (const device of devices) await expect(device.run(device.commands())).rejects.toThrow(DeviceError);
}

const config = checkpointFiles("llama_gqa");
const withoutTensor = (name: string) => checkpointFiles("llama_gqa", { tensors: (tensors) => tensors.delete(name) });
const withShape = (name: string, shape: readonly number[]) =>
  checkpointFiles("llama_gqa", { tensors: (tensors) => tensors.set(name, shape) });

describe("a model that cannot be loaded", () => {
  it.each([
    ["a missing matrix", withoutTensor("model.layers.1.mlp.up_proj.weight"), /model\.layers\.1\.mlp\.up_proj\.weight/],
    ["a missing norm", withoutTensor("model.norm.weight"), /model\.norm\.weight/],
    [
      "a matrix of another shape",
      withShape("model.layers.0.self_attn.k_proj.weight", [24, 64]),
      /k_proj\.weight.*\[24, 64\]|\[24, 64\].*k_proj\.weight/s,
    ],
    [
      "a norm of another length",
      withShape("model.layers.1.input_layernorm.weight", [63]),
      /layers\.1\.input_layernorm\.weight.*63/s,
    ],
    ["an unknown architecture", checkpointFiles("llama_gqa", { config: { model_type: "mamba" } }), /"mamba".*llama/s],
    [
      "a file cut off in its tensors",
      { ...config, "model.safetensors": config["model.safetensors"].subarray(0, -100) },
      /model\.safetensors/,
    ],
    [
      "a file cut off in its header",
      { ...config, "model.safetensors": config["model.safetensors"].subarray(0, 300) },
      /model\.safetensors/,
    ],
    ["an empty file", { ...config, "model.safetensors": new Uint8Array(0) }, /model\.safetensors/],
    ["no config", { "model.safetensors": config["model.safetensors"] }, /config\.json/],
    [
      "a GGUF file cut off in its tensors",
      { "model.gguf": quantizedGguf().subarray(0, -5000) },
      /model\.gguf.*blk|blk.*model\.gguf/s,
    ],
    ["a GGUF file cut off in its header", { "model.gguf": quantizedGguf().subarray(0, 400) }, /model\.gguf/],
    [
      "a broken tokenizer",
      { ...config, "tokenizer.json": new TextEncoder().encode('{"model": {"type": "Nonesuch"}}') },
      /Nonesuch|tokenizer/,
    ],
  ])("%s is a FormatError that names it", async (_, files: Record<string, Uint8Array>, message) => {
    const folder = memoryFolder(files);
    const { error, devices } = await refusal(folder);
    expect(error).toBeInstanceOf(FormatError);
    expect(String(error)).toMatch(message);
    await expectNothingLeft(folder, devices);
  });

  it("a cache that no memory can hold is a CapacityError", async () => {
    const folder = memoryFolder(config);
    const { error, devices } = await refusal(folder, { maxNumTokens: 2 ** 30 });
    expect(error).toBeInstanceOf(CapacityError);
    expect(devices).toHaveLength(1);
    await expectNothingLeft(folder, devices);
  });

  it("a file that fails while it is read leaves nothing open", async () => {
    const folder = memoryFolder(config);
    const failing: CountingFolder = {
      ...folder,
      async open(name) {
        const source = await folder.open(name);
        const broken = async () => {
          throw new FormatError(`${name}: the disk is gone`);
        };
        return name === "model.safetensors" ? { ...source, readInto: broken } : source;
      },
    };
    const { error, devices } = await refusal(failing);
    expect(String(error)).toContain("the disk is gone");
    expect(devices).toHaveLength(1);
    await expectNothingLeft(failing, devices);
  });

  it("a load that is given up rejects with the reason and leaves nothing open", async () => {
    const folder = memoryFolder(config);
    const controller = new AbortController();
    const reason = new Error("no longer wanted");
    const { error, devices } = await refusal(folder, {
      signal: controller.signal,
      onProgress: () => controller.abort(reason),
    });
    expect(error).toBe(reason);
    expect(devices).toHaveLength(1);
    await expectNothingLeft(folder, devices);
  });

  it.each(["maxNumTokens", "pageSize", "maxNumBatchedTokens"] as const)("%s = 0 is refused by name", async (name) => {
    const folder = memoryFolder(config);
    const { error, devices } = await refusal(folder, { [name]: 0 });
    expect(String(error)).toContain(`${name} must be a positive integer, got 0`);
    expect(devices).toHaveLength(0);
    expect(folder.numOpen()).toBe(0);
  });
});

describe("a model that was loaded", () => {
  it("has closed its files, and closes its device with the runner", async () => {
    const folder = memoryFolder(config);
    const { runner, device } = await loadModel(folder, undefined, options);
    expect(folder.numOpen()).toBe(0);
    await runner.close();
    await runner.close();
    await expectNothingLeft(folder, [device]);
  });

  it("gives its memory back when it is closed", async () => {
    setFlagsFromString("--expose-gc");
    const collect: () => void = runInNewContext("gc");
    const path = fileURLToPath(new URL("../../assets/tales-5m-q8_0.gguf", import.meta.url));
    const { folder, fileName } = await locate(path);
    let touchedBytes = 0;
    const useOnce = async () => {
      const model = await loadModel(folder, fileName, { ...options, maxNumTokens: 512, maxNumBatchedTokens: 512 });
      await runAlone(model, [randomIds(512, model.runner.vocabSize, 1)]);
      touchedBytes = model.device.stats().usedBytes;
      await model.runner.close();
    };
    /** Of the process, once workers that were ended are gone. */
    const restingBytes = async () => {
      for (let i = 0; i < 5; i++) {
        collect();
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      return process.memoryUsage().rss;
    };
    await useOnce();
    const before = await restingBytes();
    for (let i = 0; i < 3; i++) await useOnce();
    // Each use keeps more than this for itself as long as it is not closed: the workers have their own heaps.
    expect((await restingBytes()) - before).toBeLessThan(2 * touchedBytes);
  });
});
