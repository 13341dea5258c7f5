/** Tokenizers and chat templates: what the other folders may use. */

export type { AddedToken } from "./addedTokens.ts";
export { type ChatMessage, ChatTemplate, type ChatTemplateOptions, type TemplateTokens } from "./chatTemplate.ts";
export { type GgufMetadata, tokenizerFromGguf } from "./gguf.ts";
export { IncrementalDecoder } from "./incrementalDecoder.ts";
export { tokenizerFromLlama2c } from "./llama2c.ts";
export type { StringArray } from "./pieceTable.ts";
export { type DecodeOptions, type EncodeOptions, Tokenizer } from "./tokenizer.ts";
export { loadTokenizerJson, type TokenizerConfig } from "./tokenizerJson.ts";
