/** Conversions of trained models: dense keys and values to low rank (Palu). Only re-exports. */

export { addGram, type Matrix, matrixFrom, multiply, zeros } from "./linearAlgebra/index.ts";
export * from "./palu/index.ts";
