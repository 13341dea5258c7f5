import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { cases, changed, checkpoint, config, readJson, windows } from "../../../test/models/checkpointFixtures.ts";
import { FormatError } from "../../tensor/index.ts";
import type { JsonObject } from "../formats/index.ts";
import { expectedTensors } from "./expectedTensors.ts";
import { hfConfig } from "./hfConfig.ts";
import { locateTensors } from "./locateTensors.ts";

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
