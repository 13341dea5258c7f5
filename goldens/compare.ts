/** Compares computed with expected values: |got - want| <= atol + rtol |want|; NaN matches NaN, an infinity the same infinity. */

export interface Tolerance {
  readonly atol: number;
  readonly rtol: number;
}

export interface Comparison {
  /** Largest error as a multiple of what the tolerance allows; above 1 is a failure. */
  readonly worst: number;
  /** What was wrong, naming the worst element; undefined if all is well. */
  readonly failure?: string;
}

/** `rows`: `want` holds only these rows (of `rowSize` elements) of `got`. */
export function compare(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  tolerance: Tolerance,
  stored?: { readonly rows: readonly number[]; readonly rowSize: number },
): Comparison {
  const size = stored ? stored.rows.length * stored.rowSize : got.length;
  if (want.length !== size) return { worst: Infinity, failure: `the file holds ${want.length} elements, not ${size}` };
  let worst = 0;
  let worstAt = -1;
  let wrong = 0;
  for (let i = 0; i < size; i++) {
    const at = stored ? stored.rows[Math.floor(i / stored.rowSize)] * stored.rowSize + (i % stored.rowSize) : i;
    const error = excess(got[at], want[i], tolerance);
    if (error > 1) wrong++;
    if (error > worst) {
      worst = error;
      worstAt = i;
    }
  }
  if (wrong === 0) return { worst };
  const at = stored
    ? `row ${stored.rows[Math.floor(worstAt / stored.rowSize)]} column ${worstAt % stored.rowSize}`
    : `element ${worstAt}`;
  const value = stored
    ? got[stored.rows[Math.floor(worstAt / stored.rowSize)] * stored.rowSize + (worstAt % stored.rowSize)]
    : got[worstAt];
  return { worst, failure: `${wrong} of ${size} wrong, worst at ${at}: ${value}, expected ${want[worstAt]}` };
}

function excess(got: number, want: number, { atol, rtol }: Tolerance): number {
  if (Number.isNaN(want)) return Number.isNaN(got) ? 0 : Infinity;
  if (!Number.isFinite(want)) return got === want ? 0 : Infinity;
  const error = Math.abs(got - want);
  if (error === 0) return 0;
  const ratio = error / (atol + rtol * Math.abs(want));
  return Number.isNaN(ratio) ? Infinity : ratio;
}
