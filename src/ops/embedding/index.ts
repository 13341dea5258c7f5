/** Token embedding: contract, reference, and the function that records it. */

export type { EmbeddingArgs } from "./contract.ts";
export { recordEmbedding } from "./cpu.ts";
export { embedding } from "./reference.ts";
