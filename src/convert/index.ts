/**
 * `kvasir/convert`: trained models to other forms of attention. Dense key and value projections to low rank, and the ranks that fit a budget
 * (Palu). Only re-exports; weights go in and out as float64 matrices.
 */

export { addGram, type Matrix, matrixFrom, multiply, zeros } from "./linearAlgebra/index.ts";
export * from "./palu/index.ts";
