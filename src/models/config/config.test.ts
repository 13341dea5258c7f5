import { existsSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FormatError, type WeightType, weightBytes } from "../../tensor/index.ts";
import { locate, nodeFolder } from "../formats/file.node.ts";
import {
  bytesSource,
  type JsonObject,
  openWeights,
  parseJsonObject,
  type TensorEntry,
  type WeightsFile,
} from "../formats/index.ts";
import { expectedTensors } from "./expectedTensors.ts";
import { hfConfig } from "./hfConfig.ts";
import { locateTensors } from "./locateTensors.ts";
import type { ModelConfig } from "./modelConfig.ts";
import { openModel } from "./openModel.ts";

const fixtures = new URL("../../../test/fixtures/formats/", import.meta.url);

function readJson(path: string): JsonObject {
  return parseJsonObject(path, readFileSync(new URL(path, fixtures), "utf8"));
}

const cases = [
  "llama_gqa",
  "llama_rope3",
  "llama_mqa",
  "mistral_window",
  "qwen2",
  "qwen2_yarn",
  "qwen3",
  "gemma2",
  "gemma3",
  "phi3_longrope",
] as const;

type Case = (typeof cases)[number];

const config = (name: Case) => hfConfig(readJson(`hf/${name}/config.json`));
/** The config of a case with some keys changed. */
const changed = (name: Case, changes: JsonObject) => hfConfig({ ...readJson(`hf/${name}/config.json`), ...changes });
const windows = ({ layers }: ModelConfig) => layers.map(({ slidingWindow }) => slidingWindow);

/** The tensors that transformers wrote for a case, by name and shape; the bytes are not needed. */
function checkpoint(name: Case, edit?: (tensors: Map<string, TensorEntry>) => void): WeightsFile {
  const source = bytesSource("model.safetensors", new Uint8Array(0));
  const tensors = new Map<string, TensorEntry>();
  for (const [tensor, { dtype, shape }] of Object.entries(
    readJson(`hf/${name}/tensors.json`) as Record<string, { dtype: WeightType; shape: number[] }>,
  )) {
    const numBytes = weightBytes(
      dtype,
      shape.reduce((product, size) => product * size, 1),
    );
    tensors.set(tensor, { name: tensor, shape, type: dtype, source, byteOffset: 0, numBytes });
  }
  edit?.(tensors);
  return {
    format: "safetensors",
    label: "model.safetensors",
    metadata: new Map(),
    tensors,
    numBytes: 0,
    close: async () => {},
  };
}

describe.each(cases)("config.json of %s", (name) => {
  it("means the same in both spellings", () => {
    expect(hfConfig(readJson(`hf/${name}/config_v4.json`))).toEqual(config(name));
  });

  it("names every tensor of the checkpoint, in its shape", () => {
    const located = locateTensors(checkpoint(name), config(name));
    expect([...located.keys()]).toEqual(expectedTensors(config(name)).map((tensor) => tensor.name));
  });
});

describe("what the families' configs say", () => {
  it("Llama: grouped queries, llama3 scaling, biases", () => {
    expect(config("llama_gqa")).toMatchObject({
      family: "llama",
      numAttentionHeads: 4,
      numKvHeads: 2,
      headDim: 16,
      attentionScale: 0.25,
      rmsNormWeightOffset: 0,
      normLayout: "pre",
      activation: "silu",
      embeddingScale: 1,
      tieWordEmbeddings: false,
      bosTokenId: 1,
      eosTokenIds: [2],
    });
    expect(config("llama_rope3").layers[2].rope).toEqual({
      headDim: 16,
      rotaryDim: 16,
      style: "halves",
      theta: 10000,
      scaling: { type: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositionEmbeddings: 64 },
    });
    const mqa = config("llama_mqa");
    expect(mqa).toMatchObject({
      headDim: 24,
      numKvHeads: 1,
      hasQkvBias: true,
      hasAttentionOutputBias: true,
      hasMlpBias: true,
    });
    expect(windows(mqa)).toEqual([null, null, null]);
  });

  it("Mistral: a window in every layer, unless it is null", () => {
    expect(windows(config("mistral_window"))).toEqual([32, 32, 32]);
    expect(windows(changed("mistral_window", { sliding_window: null }))).toEqual([null, null, null]);
  });

  it("Qwen: biases on q, k and v; windows only where they are switched on", () => {
    expect(config("qwen2")).toMatchObject({
      hasQkvBias: true,
      hasAttentionOutputBias: false,
      hasQkNorm: false,
      tieWordEmbeddings: true,
    });
    expect(config("qwen3")).toMatchObject({ hasQkvBias: false, hasQkNorm: true, headDim: 32, rmsNormEps: 0.01 });
    const old = { layer_types: undefined, sliding_window: 64, max_window_layers: 1 };
    expect(windows(changed("qwen2", { ...old, use_sliding_window: true }))).toEqual([null, 64, 64]);
    expect(windows(changed("qwen2", { ...old, use_sliding_window: false }))).toEqual([null, null, null]);
    expect(config("qwen2_yarn").layers[0].rope.scaling).toMatchObject({
      type: "yarn",
      factor: 4,
      originalMaxPositionEmbeddings: 32,
    });
  });

  it("Gemma 2: soft caps, its own scale, every other layer with a window", () => {
    const gemma2 = config("gemma2");
    expect(gemma2).toMatchObject({
      attentionSoftCap: 4,
      finalLogitSoftCap: 6,
      rmsNormWeightOffset: 1,
      normLayout: "sandwich",
      activation: "geluTanh",
      embeddingScale: 8,
      tieWordEmbeddings: true,
    });
    expect(gemma2.attentionScale).toBeCloseTo(24 ** -0.5, 12);
    expect(windows(gemma2)).toEqual([32, null, 32, null]);
    expect(windows(changed("gemma2", { layer_types: undefined }))).toEqual([32, null, 32, null]);
    expect(changed("gemma2", { attn_logit_softcapping: null }).attentionSoftCap).toBeNull();
  });

  it("Gemma 3: five local layers, then a global one with another base", () => {
    const gemma3 = config("gemma3");
    expect(windows(gemma3)).toEqual([32, 32, 32, 32, 32, null, 32]);
    expect(windows(changed("gemma3", { layer_types: undefined }))).toEqual(windows(gemma3));
    expect(gemma3.layers.map(({ rope }) => rope.theta)).toEqual([1e4, 1e4, 1e4, 1e4, 1e4, 1e6, 1e4]);
    expect(gemma3).toMatchObject({ hasQkNorm: true, attentionSoftCap: null, finalLogitSoftCap: null, headDim: 20 });
  });

  it("Gemma 3 in a multimodal checkpoint: the text part, and what it leaves out", () => {
    const text = {
      model_type: "gemma3_text",
      hidden_size: 2560,
      intermediate_size: 10240,
      num_hidden_layers: 6,
      sliding_window: 1024,
    };
    const rope = { rope_scaling: { factor: 8, rope_type: "linear" } };
    const gemma3 = hfConfig({
      model_type: "gemma3",
      text_config: { ...text, ...rope },
      eos_token_id: [1, 106],
      vision_config: {},
    });
    expect(gemma3).toMatchObject({
      numAttentionHeads: 8,
      numKvHeads: 4,
      headDim: 256,
      vocabSize: 262208,
      eosTokenIds: [1, 106],
    });
    expect(gemma3.layers[5].rope).toMatchObject({ theta: 1e6, scaling: { type: "linear", factor: 8 } });
    expect(gemma3.layers[0].rope).toMatchObject({ theta: 1e4, scaling: { type: "default" } });
  });

  it("Phi 3: part of each head rotates, with factors for each frequency", () => {
    expect(config("phi3_longrope").layers[0].rope).toMatchObject({
      rotaryDim: 8,
      scaling: {
        type: "longrope",
        shortFactors: [1, 1.05, 1.1, 1.2],
        originalMaxPositionEmbeddings: 64,
        maxPositionEmbeddings: 256,
      },
    });
    const scaling = { type: "su", short_factor: [1, 1, 1, 1], long_factor: [2, 2, 2, 2] };
    const old = changed("phi3_longrope", {
      rope_parameters: undefined,
      rope_scaling: scaling,
      partial_rotary_factor: 0.5,
    });
    expect(old.layers[0].rope.scaling).toMatchObject({ type: "longrope", originalMaxPositionEmbeddings: 64 });
  });

  it("adds the end tokens of generation_config.json", () => {
    expect(hfConfig(readJson("hf/gemma3/config.json"), "config.json", { eos_token_id: [2, 106] }).eosTokenIds).toEqual([
      2, 106,
    ]);
  });
});

describe("configs that cannot be run", () => {
  it.each<[string, JsonObject, string]>([
    [
      "an unknown architecture",
      { model_type: "deepseek_v3" },
      'model_type is "deepseek_v3": supported are llama, mistral, qwen2',
    ],
    ["no architecture", { model_type: undefined }, "model_type is undefined"],
    ["a missing size", { hidden_size: undefined }, "config.json: hidden_size is missing: a positive integer"],
    ["a negative size", { vocab_size: -1 }, "config.json: vocab_size is -1: a positive integer"],
    ["a size in words", { vocab_size: "many" }, "config.json: vocab_size is many"],
    [
      "absurdly many layers",
      { num_hidden_layers: 2 ** 31 },
      "num_hidden_layers is 2147483648: a positive integer of at most 4096",
    ],
    ["heads that do not divide", { num_key_value_heads: 3 }, "4 attention heads are not a multiple of 3"],
    ["heads of an odd width", { head_dim: 15 }, "heads have 15 channels"],
    ["an unknown activation", { hidden_act: "xielu" }, "hidden_act is xielu: silu"],
    [
      "an unknown RoPE scaling",
      { rope_parameters: { rope_type: "mrope" } },
      "rope_parameters.rope_type is mrope: default, linear",
    ],
    ["a scaling without its factor", { rope_parameters: { rope_type: "linear" } }, "rope_parameters.factor is missing"],
    ["RoPE settings that are no object", { rope_parameters: 3 }, "rope_parameters is 3: an object"],
    [
      "an end token outside of the vocabulary",
      { eos_token_id: 256 },
      "token id 256 is outside of the vocabulary of 256",
    ],
    ["quantised weights", { quantization_config: { quant_method: "awq" } }, "the weights are quantised with awq"],
    [
      "an unknown kind of layer",
      { layer_types: ["linear_attention", "full_attention", "full_attention"] },
      "layer_types is linear_attention",
    ],
    ["too few kinds of layers", { layer_types: ["full_attention"] }, "a list of 3 names"],
  ])("%s is named", (_, changes, message) => {
    const read = () => changed("llama_gqa", changes);
    expect(read).toThrow(FormatError);
    expect(read).toThrow(message);
  });

  it("gives a config or a FormatError for any values", () => {
    const base = Object.entries(readJson("hf/gemma3/config.json"));
    const edit = fc.record({ key: fc.constantFrom(...base.map(([key]) => key)), value: fc.jsonValue({ maxDepth: 2 }) });
    fc.assert(
      fc.property(fc.array(edit, { minLength: 1, maxLength: 3 }), (edits) => {
        try {
          hfConfig({ ...Object.fromEntries(base), ...Object.fromEntries(edits.map(({ key, value }) => [key, value])) });
        } catch (error) {
          expect(error).toBeInstanceOf(FormatError);
        }
      }),
      { numRuns: 500, seed: 1 },
    );
  });
});

describe("checkpoints that do not fit their config", () => {
  const q = "model.layers.1.self_attn.q_proj.weight";

  it("name a missing tensor", () => {
    expect(() =>
      locateTensors(
        checkpoint("llama_gqa", (tensors) => tensors.delete(q)),
        config("llama_gqa"),
      ),
    ).toThrow(
      `model.safetensors: tensor ${q} or model.layers.1.self_attn.qkv_proj.weight (layers.1.attention.q) is missing`,
    );
  });

  it("name a tensor of another shape", () => {
    const wrong = checkpoint("llama_gqa", (tensors) => {
      const entry = tensors.get(q);
      if (entry !== undefined) tensors.set(q, { ...entry, shape: [64, 63] });
    });
    expect(() => locateTensors(wrong, config("llama_gqa"))).toThrow(
      `tensor ${q} (layers.1.attention.q) must have shape [64, 64], got [64, 63]`,
    );
  });

  it("name a tensor that the model has no place for", () => {
    expect(() => locateTensors(checkpoint("qwen3"), { ...config("qwen3"), hasQkNorm: false })).toThrow(
      "self_attn.k_norm.weight belongs to no part of a qwen3 model",
    );
  });

  it("name a fused tensor with the wrong number of rows", () => {
    expect(() =>
      locateTensors(checkpoint("phi3_longrope"), { ...config("phi3_longrope"), intermediateSize: 95 }),
    ).toThrow("tensor model.layers.0.mlp.gate_up_proj.weight has 192 rows, but mlp.gate, mlp.up together have 190");
  });

  it("split fused tensors by rows", () => {
    const located = locateTensors(checkpoint("phi3_longrope"), config("phi3_longrope"));
    const rows = ["q", "k", "v"].map((part) => located.get(`layers.1.attention.${part}`));
    expect(rows.map((entry) => entry?.shape)).toEqual([
      [64, 64],
      [32, 64],
      [32, 64],
    ]);
    expect(rows.map((entry) => entry?.byteOffset)).toEqual([0, 64 * 64 * 2, 96 * 64 * 2]);
  });

  it("may hold the tied output matrix once more, and tables of old RoPE code", () => {
    const old = checkpoint("llama_rope3", (tensors) => {
      const embedding = tensors.get("model.embed_tokens.weight");
      if (embedding === undefined) throw new Error("the embedding must be there");
      tensors.set("lm_head.weight", { ...embedding, name: "lm_head.weight" });
      tensors.set("model.layers.0.self_attn.rotary_emb.inv_freq", { ...embedding, shape: [8] });
    });
    expect(locateTensors(old, config("llama_rope3")).has("output")).toBe(false);
  });

  it("of multimodal models are read by their prefix", () => {
    const prefixed = checkpoint("gemma3", (tensors) => {
      const entries = [...tensors];
      tensors.clear();
      for (const [name, entry] of entries)
        tensors.set(`language_model.${name}`, { ...entry, name: `language_model.${name}` });
      tensors.set("vision_tower.x", { ...entries[0][1], name: "vision_tower.x" });
    });
    expect(locateTensors(prefixed, config("gemma3")).size).toBe(expectedTensors(config("gemma3")).length);
  });
});

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
    const { ggufConfig } = await import("./ggufConfig.ts");
    const bytes = new Uint8Array(readFileSync(new URL("llama.gguf", fixtures)));
    const folder = { label: "memory", names: ["llama.gguf"], open: async (name: string) => bytesSource(name, bytes) };
    const weights = await openWeights(folder);
    const edited = { ...weights, metadata: new Map(weights.metadata).set(key, value) };
    const reading = (async () => locateTensors(edited, await ggufConfig(edited)))();
    await expect(reading).rejects.toThrow(FormatError);
    await expect(reading).rejects.toThrow(message);
  });
});

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
