/**
 * The committed configs and tensor lists of small checkpoints that transformers wrote, for the tests of src/models/config. For tests only.
 */

import { readFileSync } from "node:fs";
import { hfConfig } from "../../src/models/config/hfConfig.ts";
import type { ModelConfig } from "../../src/models/config/modelConfig.ts";
import {
  bytesSource,
  type JsonObject,
  parseJsonObject,
  type TensorEntry,
  type WeightsFile,
} from "../../src/models/formats/index.ts";
import { type WeightType, weightBytes } from "../../src/tensor/index.ts";

/** Where the committed files lie. */
export const fixtures = new URL("../fixtures/formats/", import.meta.url);

/** Reads a JSON fixture. */
export function readJson(path: string): JsonObject {
  return parseJsonObject(path, readFileSync(new URL(path, fixtures), "utf8"));
}

/** The checkpoints, each with config.json, config_v4.json and the list of its tensors. */
export const cases = [
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

/** The name of a checkpoint. */
export type Case = (typeof cases)[number];

/** The config of a case. */
export const config = (name: Case) => hfConfig(readJson(`hf/${name}/config.json`));
/** The config of a case with some keys changed. */
export const changed = (name: Case, changes: JsonObject) =>
  hfConfig({ ...readJson(`hf/${name}/config.json`), ...changes });
/** The sliding window of each layer. */
export const windows = ({ layers }: ModelConfig) => layers.map(({ slidingWindow }) => slidingWindow);

/** The tensors that transformers wrote for a case, by name and shape; the bytes are not needed. */
export function checkpoint(name: Case, edit?: (tensors: Map<string, TensorEntry>) => void): WeightsFile {
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
