/** What each format calls the tensors that expectedTensors.ts lists, fused matrices included. */

import type { ModelConfig } from "./modelConfig.ts";

/** Rows of a fused tensor: the parts that lie in it, in order. */
interface Fusion {
  readonly name: string;
  readonly parts: readonly string[];
}

/** Names of a model's tensors in one format. */
export interface TensorNames {
  /** The name of a tensor outside of the layers (`embedding`, `finalNorm`, `output`). */
  readonly outer: ReadonlyMap<string, string>;
  /** What stands before a layer's own names, for layer N. */
  layerPrefix(layer: number): string;
  /** The name of a layer's tensor (`attention.q`) behind that prefix. */
  readonly layer: ReadonlyMap<string, string>;
  /** Where parts lie when the file holds them in one matrix; it is looked at when a part has no tensor of its own. */
  readonly fusions: readonly Fusion[];
  /** Tensors that a file may have and nobody reads. */
  isIgnored(name: string): boolean;
}

const QKV_PARTS = ["attention.q", "attention.k", "attention.v"];
const GATE_UP_PARTS = ["mlp.gate", "mlp.up"];

/** Names in GGUF files. */
export function ggufTensorNames(config: ModelConfig): TensorNames {
  const isSandwich = config.normLayout === "sandwich";
  const layer = new Map([
    ["attentionNorm", "attn_norm.weight"],
    ["attention.q", "attn_q.weight"],
    ["attention.k", "attn_k.weight"],
    ["attention.v", "attn_v.weight"],
    ["attention.o", "attn_output.weight"],
    ["attention.qBias", "attn_q.bias"],
    ["attention.kBias", "attn_k.bias"],
    ["attention.vBias", "attn_v.bias"],
    ["attention.oBias", "attn_output.bias"],
    ["attention.qNorm", "attn_q_norm.weight"],
    ["attention.kNorm", "attn_k_norm.weight"],
    ["mlpNorm", "ffn_norm.weight"],
    ["mlp.gate", "ffn_gate.weight"],
    ["mlp.up", "ffn_up.weight"],
    ["mlp.down", "ffn_down.weight"],
    ["mlp.gateBias", "ffn_gate.bias"],
    ["mlp.upBias", "ffn_up.bias"],
    ["mlp.downBias", "ffn_down.bias"],
  ]);
  if (isSandwich)
    layer.set("postAttentionNorm", "post_attention_norm.weight").set("postMlpNorm", "post_ffw_norm.weight");
  const fusions = [{ name: "attn_qkv.weight", parts: QKV_PARTS }];
  if (config.family === "phi3") {
    // Phi 3's ffn_up holds gate and up; there is no ffn_gate.
    layer.delete("mlp.gate");
    layer.delete("mlp.up");
    fusions.push({ name: "ffn_up.weight", parts: GATE_UP_PARTS });
  }
  return {
    outer: new Map([
      ["embedding", "token_embd.weight"],
      ["finalNorm", "output_norm.weight"],
      ["output", "output.weight"],
    ]),
    layerPrefix: (index) => `blk.${index}.`,
    layer,
    fusions,
    // ggufRope.ts has read these.
    isIgnored: (name) => name === "rope_freqs.weight" || /^rope_factors_(long|short)\.weight$/.test(name),
  };
}

/** Names in Hugging Face checkpoints. `has` says which names the file holds: the text part of a multimodal model has prefixes. */
export function hfTensorNames(config: ModelConfig, has: (name: string) => boolean): TensorNames {
  const isSandwich = config.normLayout === "sandwich";
  const prefixes = ["model.", "language_model.model.", "model.language_model."];
  const prefix = prefixes.find((candidate) => has(`${candidate}embed_tokens.weight`)) ?? prefixes[0];
  const output = has("language_model.lm_head.weight") ? "language_model.lm_head.weight" : "lm_head.weight";
  const layer = new Map([
    ["attentionNorm", "input_layernorm.weight"],
    ["attention.q", "self_attn.q_proj.weight"],
    ["attention.k", "self_attn.k_proj.weight"],
    ["attention.v", "self_attn.v_proj.weight"],
    ["attention.o", "self_attn.o_proj.weight"],
    ["attention.qBias", "self_attn.q_proj.bias"],
    ["attention.kBias", "self_attn.k_proj.bias"],
    ["attention.vBias", "self_attn.v_proj.bias"],
    ["attention.oBias", "self_attn.o_proj.bias"],
    ["attention.qNorm", "self_attn.q_norm.weight"],
    ["attention.kNorm", "self_attn.k_norm.weight"],
    ["mlpNorm", isSandwich ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight"],
    ["mlp.gate", "mlp.gate_proj.weight"],
    ["mlp.up", "mlp.up_proj.weight"],
    ["mlp.down", "mlp.down_proj.weight"],
    ["mlp.gateBias", "mlp.gate_proj.bias"],
    ["mlp.upBias", "mlp.up_proj.bias"],
    ["mlp.downBias", "mlp.down_proj.bias"],
  ]);
  if (isSandwich) {
    layer
      .set("postAttentionNorm", "post_attention_layernorm.weight")
      .set("postMlpNorm", "post_feedforward_layernorm.weight");
  }
  return {
    outer: new Map([
      ["embedding", `${prefix}embed_tokens.weight`],
      ["finalNorm", `${prefix}norm.weight`],
      ["output", output],
    ]),
    layerPrefix: (index) => `${prefix}layers.${index}.`,
    layer,
    fusions: [
      { name: "self_attn.qkv_proj.weight", parts: QKV_PARTS },
      { name: "mlp.gate_up_proj.weight", parts: GATE_UP_PARTS },
    ],
    isIgnored: (name) =>
      name.endsWith(".rotary_emb.inv_freq") || // a table that old files carry; it follows from the config
      (name === output && config.tieWordEmbeddings) ||
      /^(model\.)?(vision_tower|multi_modal_projector)\./.test(name),
  };
}

/** llama2.c files: openLlama2c gives Kvasir's own names. */
export function ownTensorNames(config: ModelConfig): TensorNames {
  const sameNames = (names: readonly string[]) => new Map(names.map((name) => [name, name]));
  const layerNames = ["attentionNorm", ...QKV_PARTS, "attention.o", "mlpNorm", ...GATE_UP_PARTS, "mlp.down"];
  return {
    outer: sameNames(config.tieWordEmbeddings ? ["embedding", "finalNorm"] : ["embedding", "finalNorm", "output"]),
    layerPrefix: (index) => `layers.${index}.`,
    layer: sameNames(layerNames),
    fusions: [],
    isIgnored: () => false,
  };
}
