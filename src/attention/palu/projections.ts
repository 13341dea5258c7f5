/**
 * Host arithmetic on Palu's up-projections: from the order of a checkpoint to the order of the kernels, queries that absorb U_k, latents
 * expanded by U_v, and U_v folded into the output projection. All sums in float64. Decomposing weights is elsewhere.
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";

/** Heads of a layer. Query head h reads key/value head floor(h / (numQHeads / numKvHeads)). */
export interface PaluHeads {
  readonly numQHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
}

/** One key/value head's part of packed up-projections: where its [rank, headDim] begins, and the rank. */
interface HeadPart {
  readonly begin: number;
  readonly rank: number;
}

/**
 * The factor of a checkpoint in the order of the kernels. `factor`: the groups one after the other, each [heads of the group * headDim,
 * rank of the group] (Palu's U). Returns for each key/value head in order [rank of its group, headDim].
 * Throws ShapeError if `factor` is not as long as the ranks say.
 */
export function headUpProjections(
  factor: ArrayLike<number>,
  ranks: readonly number[],
  { numKvHeads, headDim }: Pick<PaluHeads, "numKvHeads" | "headDim">,
): Float32Array {
  const parts = headParts(ranks, numKvHeads, headDim);
  requireLength("factor", factor, upElements(parts, headDim));
  const up = new Float32Array(factor.length);
  // A group's heads lie one after the other in both orders: only each head's [headDim, rank] is transposed.
  for (const { begin, rank } of parts) {
    for (let d = 0; d < headDim; d++) {
      for (let r = 0; r < rank; r++) up[begin + r * headDim + d] = factor[begin + d * rank + r];
    }
  }
  return up;
}

/**
 * Queries that meet key latents as they are: q [rows, numQHeads, headDim] times U_k^T of each head. Returns [rows, numQHeads, maxRank], with
 * zeros past the rank of a head's group; maxRank is the largest rank by default. Exact only where keys have neither rope nor bias.
 */
export function absorbQueries(
  q: ArrayLike<number>,
  upK: ArrayLike<number>,
  ranksK: readonly number[],
  heads: PaluHeads,
  maxRank = Math.max(...ranksK),
): Float32Array {
  const { numQHeads, numKvHeads, headDim } = heads;
  const parts = headParts(ranksK, numKvHeads, headDim);
  requireLength("upK", upK, upElements(parts, headDim));
  const absorbed = new Float32Array((q.length / headDim) * maxRank);
  for (let at = 0; at * headDim < q.length; at++) {
    const { begin, rank } = parts[kvHeadOf(at % numQHeads, heads)];
    for (let r = 0; r < rank; r++) {
      let dot = 0;
      for (let d = 0; d < headDim; d++) dot += q[at * headDim + d] * upK[begin + r * headDim + d];
      absorbed[at * maxRank + r] = dot;
    }
  }
  return absorbed;
}

/**
 * Latent outputs in full: latents [rows, for each query head in order the rank of its group] times U_v of each head, plus the values' bias
 * [numKvHeads, headDim] (softmax weights sum to 1). `upV` in kernel order. Returns [rows, numQHeads, headDim]. For a row without any key
 * leave the bias out: it has no values to add it to.
 */
export function expandLatents(
  latents: ArrayLike<number>,
  upV: ArrayLike<number>,
  ranksV: readonly number[],
  heads: PaluHeads,
  vBias?: ArrayLike<number>,
): Float64Array {
  const { numQHeads, numKvHeads, headDim } = heads;
  const parts = headParts(ranksV, numKvHeads, headDim);
  requireLength("upV", upV, upElements(parts, headDim));
  if (vBias) requireLength("vBias", vBias, numKvHeads * headDim);
  const rowLength = latentWidth(parts, heads);
  const out = new Float64Array((latents.length / rowLength) * numQHeads * headDim);
  let from = 0;
  for (let to = 0; to < out.length; to += headDim) {
    const kvHead = kvHeadOf((to / headDim) % numQHeads, heads);
    const { begin, rank } = parts[kvHead];
    for (let d = 0; d < headDim; d++) {
      let sum = vBias?.[kvHead * headDim + d] ?? 0;
      for (let r = 0; r < rank; r++) sum += latents[from + r] * upV[begin + r * headDim + d];
      out[to + d] = sum;
    }
    from += rank;
  }
  return out;
}

/** An output projection that reads latents. */
export interface FusedOutputProjection {
  /** [hidden, inFeatures] */
  readonly weight: Float32Array;
  /** [hidden]; zeros without a bias of the values */
  readonly bias: Float32Array;
  /** Sum over the query heads of the rank of their group's values: a row of latent outputs. */
  readonly inFeatures: number;
}

/**
 * Folds U_v into the output projection: o_proj(out) = weight . latents + bias. Query head h takes U_v of the key/value head it reads, so
 * grouped-query models need nothing else; the values' bias becomes o_proj . (bias of each query head).
 *
 * @param oProj [hidden, numQHeads * headDim]
 * @param upV U_v in kernel order (`headUpProjections`)
 * @param vBias [numKvHeads, headDim]
 */
export function fuseOutputProjection(
  oProj: ArrayLike<number>,
  upV: ArrayLike<number>,
  ranksV: readonly number[],
  heads: PaluHeads,
  vBias?: ArrayLike<number>,
): FusedOutputProjection {
  const { numQHeads, numKvHeads, headDim } = heads;
  const parts = headParts(ranksV, numKvHeads, headDim);
  requireLength("upV", upV, upElements(parts, headDim));
  if (vBias) requireLength("vBias", vBias, numKvHeads * headDim);
  const columns = numQHeads * headDim;
  if (oProj.length === 0 || oProj.length % columns !== 0) {
    throw new ShapeError(
      `oProj must have rows of numQHeads * headDim = ${columns} elements, got ${oProj.length} elements`,
    );
  }
  const hidden = oProj.length / columns;
  const inFeatures = latentWidth(parts, heads);
  const weight = new Float32Array(hidden * inFeatures);
  const bias = new Float32Array(hidden);
  for (let row = 0; row < hidden; row++) {
    let to = row * inFeatures;
    let biasSum = 0;
    for (let head = 0; head < numQHeads; head++) {
      const from = row * columns + head * headDim;
      const kvHead = kvHeadOf(head, heads);
      const { begin, rank } = parts[kvHead];
      for (let r = 0; r < rank; r++) {
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += oProj[from + d] * upV[begin + r * headDim + d];
        weight[to++] = dot;
      }
      if (vBias) for (let d = 0; d < headDim; d++) biasSum += oProj[from + d] * vBias[kvHead * headDim + d];
    }
    bias[row] = biasSum;
  }
  return { weight, bias, inFeatures };
}

function kvHeadOf(head: number, { numQHeads, numKvHeads }: PaluHeads): number {
  return Math.floor(head / (numQHeads / numKvHeads));
}

function headParts(ranks: readonly number[], numKvHeads: number, headDim: number): HeadPart[] {
  if (ranks.length === 0 || numKvHeads % ranks.length !== 0) {
    throw new ArgumentError(
      `ranks must have a number of groups that divides numKvHeads = ${numKvHeads}, got ${ranks.length}`,
    );
  }
  const parts: HeadPart[] = [];
  let begin = 0;
  for (let head = 0; head < numKvHeads; head++) {
    const rank = ranks[Math.floor(head / (numKvHeads / ranks.length))];
    parts.push({ begin, rank });
    begin += rank * headDim;
  }
  return parts;
}

function upElements(parts: readonly HeadPart[], headDim: number): number {
  return parts.reduce((sum, { rank }) => sum + rank * headDim, 0);
}

function latentWidth(parts: readonly HeadPart[], { numQHeads, numKvHeads }: PaluHeads): number {
  return parts.reduce((sum, { rank }) => sum + rank * (numQHeads / numKvHeads), 0);
}

function requireLength(name: string, array: ArrayLike<number>, length: number): void {
  if (array.length === length) return;
  throw new ShapeError(`${name} must have ${length} elements, got ${array.length}`);
}
