/** Soft cap, row statistics and candidates by their definitions, in float64 on contiguous rows. */

/** cap * tanh(x / cap), element by element. */
export function softCap(logits: ArrayLike<number>, cap: number): Float64Array {
  return Float64Array.from(logits, (x) => cap * Math.tanh(x / cap));
}

/** The statistics of one row. */
export interface RowStatistics {
  /** The smallest column with the largest logit, -1 if there is a NaN. */
  readonly argmax: number;
  readonly max: number;
  /** Natural logarithm of the sum of exp(x). */
  readonly logSumExp: number;
}

/** The statistics of one row of logits. */
export function rowStatistics(row: ArrayLike<number>): RowStatistics {
  let argmax = 0;
  for (let column = 0; column < row.length; column++) {
    if (Number.isNaN(row[column])) return { argmax: -1, max: Number.NaN, logSumExp: Number.NaN };
    if (row[column] > row[argmax]) argmax = column;
  }
  const max = row[argmax];
  if (!Number.isFinite(max)) return { argmax, max, logSumExp: max };
  let sum = 0;
  for (let column = 0; column < row.length; column++) sum += Math.exp(row[column] - max);
  return { argmax, max, logSumExp: max + Math.log(sum) };
}

/** A token and its logit. */
export interface Candidate {
  readonly token: number;
  readonly value: number;
}

/** The `numCandidates` largest logits of a row in descending order, equal ones by ascending column; -1 and -inf where there are fewer. */
export function topCandidates(row: ArrayLike<number>, numCandidates: number): Candidate[] {
  const best = Array.from(row, (value, token) => ({ token, value }))
    .filter(({ value }) => value > -Infinity)
    .sort((a, b) => b.value - a.value || a.token - b.token)
    .slice(0, numCandidates);
  while (best.length < numCandidates) best.push({ token: -1, value: -Infinity });
  return best;
}
