/** Token embedding in float64: rows of `table` ([vocabulary, dim]) times `scale`. */
export function embedding(table: ArrayLike<number>, dim: number, tokenIds: ArrayLike<number>, scale = 1): Float64Array {
  const out = new Float64Array(tokenIds.length * dim);
  for (let t = 0; t < tokenIds.length; t++) {
    for (let d = 0; d < dim; d++) out[t * dim + d] = table[tokenIds[t] * dim + d] * scale;
  }
  return out;
}
