/**
 * What a whole layer of multi-head latent attention costs in each of its three forms, projections included, as the description of
 * FlashInfer's pull request 551 counts it, and the number of new tokens from which absorbing no longer pays. The attention alone, as a
 * kernel runs it, is in costs.ts.
 *
 * All functions are for one sequence. They begin at the normed low-rank query and the normed latents, leave out rope, norms and the two
 * projections down to the ranks, which all forms share, and let every query see every key. A multiply-add is 2 operations.
 */

/** The dimensions of a layer, named as in DeepSeek's configuration. */
export interface MlaShape {
  readonly hiddenSize: number;
  readonly numHeads: number;
  /** Absent where queries come straight from the hidden state (DeepSeek V2 Lite). */
  readonly qLoraRank?: number;
  readonly kvLoraRank: number;
  readonly qkNopeHeadDim: number;
  readonly qkRopeHeadDim: number;
  readonly vHeadDim: number;
}

/**
 * How a layer is computed. "vanilla": keys and values of every token are rebuilt from the latents for every head. "runtime": queries are
 * multiplied with W_UK and outputs with W_UV in each step, attention runs over the latents. "materialised": the same with W_UQ W_UK and
 * W_UV W_O multiplied beforehand.
 */
export type MlaCostForm = "vanilla" | "runtime" | "materialised";

/** Elements of a layer's weights; `queryRope` is the part of W_UQ that makes the rotated channels, in each form the same. */
export interface MlaWeights {
  readonly query: number;
  readonly queryRope: number;
  /** W_UK and W_UV. */
  readonly up: number;
  readonly output: number;
}

export function mlaWeights(shape: MlaShape, form: MlaCostForm): MlaWeights {
  const { hiddenSize, numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = shape;
  const queryRank = shape.qLoraRank ?? hiddenSize;
  const queryRope = queryRank * numHeads * qkRopeHeadDim;
  if (form === "materialised") {
    return {
      query: queryRank * numHeads * kvLoraRank,
      queryRope,
      up: 0,
      output: numHeads * kvLoraRank * hiddenSize,
    };
  }
  return {
    query: queryRank * numHeads * qkNopeHeadDim,
    queryRope,
    up: kvLoraRank * numHeads * (qkNopeHeadDim + vHeadDim),
    output: numHeads * vHeadDim * hiddenSize,
  };
}

/** Operations with keys and values rebuilt for all kvLen tokens. */
export function mlaVanillaOperations(shape: MlaShape, queryLen: number, kvLen: number): number {
  return 2 * (rebuildProducts(shape, kvLen) + queryLen * productsPerQuery(shape, kvLen, "vanilla"));
}

/** Operations with W_UK and W_UV absorbed in each step. */
export function mlaAbsorbedOperations(shape: MlaShape, queryLen: number, kvLen: number): number {
  return 2 * queryLen * productsPerQuery(shape, kvLen, "runtime");
}

/** Operations with W_UK and W_UV absorbed into the weights beforehand. */
export function mlaMaterialisedOperations(shape: MlaShape, queryLen: number, kvLen: number): number {
  return 2 * queryLen * productsPerQuery(shape, kvLen, "materialised");
}

/**
 * The smallest number of new tokens for which absorbing takes more operations than rebuilding keys and values; Infinity if there is none.
 * With kvLen keys, a step of fewer new tokens should absorb.
 */
export function absorbThreshold(
  shape: MlaShape,
  kvLen: number,
  form: Exclude<MlaCostForm, "vanilla"> = "runtime",
): number {
  const lost = productsPerQuery(shape, kvLen, form) - productsPerQuery(shape, kvLen, "vanilla");
  return lost > 0 ? Math.floor(rebuildProducts(shape, kvLen) / lost) + 1 : Infinity;
}

/**
 * Elements that the pull request counts as the memory of a layer: weights, low-rank queries, queries, latents and outputs. For the vanilla form
 * its numbers come out with the rebuilt keys, their shared rotated channels repeated for each head, and without the rebuilt values.
 */
export function mlaElements(shape: MlaShape, queryLen: number, kvLen: number, form: MlaCostForm): number {
  const { numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = shape;
  const weights = mlaWeights(shape, form);
  const numWeights = weights.query + weights.queryRope + weights.up + weights.output;
  const lowRankQuery = shape.qLoraRank ?? shape.hiddenSize;
  if (form === "vanilla") {
    const headDim = qkNopeHeadDim + qkRopeHeadDim;
    const perQuery = lowRankQuery + numHeads * (headDim + vHeadDim);
    return numWeights + queryLen * perQuery + kvLen * (kvLoraRank + numHeads * headDim);
  }
  const perQuery = lowRankQuery + numHeads * (kvLoraRank + qkRopeHeadDim + kvLoraRank);
  return numWeights + queryLen * perQuery + kvLen * (kvLoraRank + qkRopeHeadDim);
}

/** Multiply-adds of the up-projection of kvLen latents to keys and values. */
function rebuildProducts(shape: MlaShape, kvLen: number): number {
  return kvLen * mlaWeights(shape, "vanilla").up;
}

/** Multiply-adds of one query token: its projections, scores, weighted values and the output projection. */
function productsPerQuery(shape: MlaShape, kvLen: number, form: MlaCostForm): number {
  const { numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = shape;
  const { query, queryRope, up, output } = mlaWeights(shape, form);
  const [keyDim, valueDim] = form === "vanilla" ? [qkNopeHeadDim, vHeadDim] : [kvLoraRank, kvLoraRank];
  const attention = kvLen * numHeads * (keyDim + qkRopeHeadDim + valueDim);
  return query + queryRope + (form === "runtime" ? up : 0) + attention + output;
}
