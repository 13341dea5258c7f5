/**
 * `kvasir/models`: weights files, configs, tokenizers, chat templates, and models that run a ragged batch. Only re-exports. In Node, a
 * path becomes a folder of files by `nodeFolder` of formats/file.node.ts, which the engine loads by itself.
 */

export * from "./config/index.ts";
export * from "./formats/index.ts";
export { type LoadedModel, type LoadModelOptions, loadModel } from "./loadModel.ts";
export type { LogitsBatch, ModelRunner, RaggedBatch } from "./runner.ts";
export * from "./tokenizer/index.ts";
