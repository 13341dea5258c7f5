import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { fixtures, windows } from "../../../test/models/checkpointFixtures.ts";
import { FormatError } from "../../tensor/index.ts";
import { nodeFolder } from "../formats/file.node.ts";
import { bytesSource, openWeights } from "../formats/index.ts";
import { expectedTensors } from "./expectedTensors.ts";
import { ggufConfig } from "./ggufConfig.ts";
import { locateTensors } from "./locateTensors.ts";
import { openModel } from "./openModel.ts";

describe("GGUF files", () => {
  const open = async (name: string) => {
    const model = await openModel(await nodeFolder(new URL(".", fixtures).pathname), name);
    await model.weights.close();
    return model;
  };

  it("Gemma 3: conventions of the converter", async () => {
    const { config: gemma3, tensors } = await open("gemma3.gguf");
    expect(gemma3).toMatchObject({
      family: "gemma3",
      vocabSize: 8,
      headDim: 16,
      numKvHeads: 1,
      rmsNormWeightOffset: 0,
      normLayout: "sandwich",
      activation: "geluTanh",
      attentionScale: 0.25,
      tieWordEmbeddings: true,
      bosTokenId: 2,
      eosTokenIds: [1],
    });
    expect(windows(gemma3)).toEqual([16, 16, 16, 16, 16, null, 16]);
    expect(gemma3.layers[5].rope).toMatchObject({
      style: "halves",
      theta: 1e6,
      scaling: { type: "linear", factor: 8 },
    });
    expect(gemma3.layers[0].rope).toMatchObject({ theta: 1e4, scaling: { type: "default" } });
    expect(tensors.get("layers.6.postMlpNorm")?.name).toBe("blk.6.post_ffw_norm.weight");
  });

  it("Phi 3: fused tensors and the factors of longrope", async () => {
    const { config: phi3, tensors } = await open("phi3.gguf");
    expect(phi3).toMatchObject({ family: "phi3", tieWordEmbeddings: false, intermediateSize: 48 });
    expect(phi3.layers[1]).toMatchObject({ slidingWindow: null, rope: { rotaryDim: 8, style: "halves" } });
    expect(phi3.layers[1].rope.scaling).toMatchObject({
      type: "longrope",
      longFactors: [1, 1.5, 2.5, 4],
      attentionFactor: 1.25,
    });
    const up = tensors.get("layers.0.mlp.up");
    const gate = tensors.get("layers.0.mlp.gate");
    expect(up?.shape).toEqual([48, 32]);
    expect((up?.byteOffset ?? 0) - (gate?.byteOffset ?? 0)).toBe(48 * 32 * 2);
  });

  it.each(["llama.gguf", "split-00001-of-00003.gguf"])(
    "%s: rotated pairs are neighbours, divisors are a tensor",
    async (name) => {
      const { config: llama, tensors } = await open(name);
      expect(llama.layers[0].rope).toEqual({
        headDim: 8,
        rotaryDim: 8,
        style: "interleaved",
        theta: 5e5,
        scaling: { type: "factors", factors: [1, 1, 3, 8] },
      });
      expect([...tensors.keys()]).toEqual(expectedTensors(llama).map((tensor) => tensor.name));
    },
  );

  it.each([
    ["general.architecture", "rwkv7", 'general.architecture is "rwkv7": supported are llama, qwen2'],
    ["llama.expert_count", 8, "llama.expert_count is 8: 0 (mixtures of experts are not supported)"],
    ["llama.block_count", 3, "tensor blk.2.attn_norm.weight (layers.2.attentionNorm) is missing"],
    ["llama.block_count", 1, "tensor blk.1.attn_norm.weight belongs to no part of a llama model"],
    ["llama.rope.dimension_count", 6, "tensor rope_freqs.weight must have shape [3], got [4]"],
    ["llama.rope.scaling.type", "mystery", "llama.rope.scaling.type is mystery: none, linear, yarn"],
    [
      "llama.attention.head_count",
      new Int32Array([2, 1]),
      "llama.attention.head_count is [2,1]: the same positive integer",
    ],
    ["llama.attention.value_length", 4, "llama.attention.value_length is 4: attention.key_length = 8"],
    ["llama.context_length", undefined, "llama.context_length is missing"],
  ])("%s = %s is named", async (key, value, message) => {
    const bytes = new Uint8Array(readFileSync(new URL("llama.gguf", fixtures)));
    const folder = { label: "memory", names: ["llama.gguf"], open: async (name: string) => bytesSource(name, bytes) };
    const weights = await openWeights(folder);
    const edited = { ...weights, metadata: new Map(weights.metadata).set(key, value) };
    const reading = (async () => locateTensors(edited, await ggufConfig(edited)))();
    await expect(reading).rejects.toThrow(FormatError);
    await expect(reading).rejects.toThrow(message);
  });
});
