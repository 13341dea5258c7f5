import { existsSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { cases } from "../../../test/models/checkpointFixtures.ts";
import { locate } from "../formats/file.node.ts";
import { expectedTensors } from "./expectedTensors.ts";
import { openModel } from "./openModel.ts";

const shared = new URL("../../../../shared/", import.meta.url);
const sharedModels = [
  ...cases.map((name) => `goldens/models/hf/${name}`),
  "goldens/models/hf/llama_mha",
  ...["llama_f32", "llama_mixed", "llama_k", "qwen2_mixed"].map((name) => `goldens/models/gguf/${name}.gguf`),
  "data/tales-model",
  "data/tales-model/tales-5m-q8_0.gguf",
  "data/stories260K/stories260K.bin",
];

describe.skipIf(!existsSync(shared))("whole models", () => {
  it.each(sharedModels)("%s has every tensor of its config", async (path) => {
    const { folder, fileName } = await locate(new URL(path, shared).pathname);
    const model = await openModel(folder, fileName);
    expect([...model.tensors.keys()]).toEqual(expectedTensors(model.config).map((tensor) => tensor.name));
    await model.weights.close();
  });

  it.each(["deepseek_v2", "gpt_oss", "minicpm3", "qwen3_moe"])("%s is refused by name", async (name) => {
    const { folder, fileName } = await locate(new URL(`goldens/models/hf/${name}`, shared).pathname);
    await expect(openModel(folder, fileName)).rejects.toThrow(`model_type is "${name}": supported are`);
  });
});

const gemma = new URL("../../../models/gemma-3-270m-q4_k_m.gguf", import.meta.url);

describe.skipIf(!existsSync(gemma))("Gemma 3 270M (npm run fetch:gemma)", () => {
  it("has every tensor of its config, and its vocabulary", async () => {
    const { folder, fileName } = await locate(gemma.pathname);
    const { config, tensors, weights } = await openModel(folder, fileName);
    expect(tensors.size).toBe(236);
    expect(config).toMatchObject({
      family: "gemma3",
      numLayers: 18,
      headDim: 256,
      vocabSize: 262_144,
      eosTokenIds: [1],
    });
    expect(config.layers.filter(({ slidingWindow }) => slidingWindow === null).length).toBe(3);
    expect(weights.metadata.get("tokenizer.ggml.tokens")).toHaveLength(262_144);
    await weights.close();
  });
});
