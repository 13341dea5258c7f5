import { describe, expect, it } from "vitest";
import { checkpoint, config } from "../../../test/models/checkpointFixtures.ts";
import { expectedTensors } from "./expectedTensors.ts";
import { locateTensors } from "./locateTensors.ts";

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
