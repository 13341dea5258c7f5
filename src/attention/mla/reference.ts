/**
 * A whole MLA layer as the papers write it, in float64: projections, norms, rope, attention with keys and values of every head, output
 * projection. Nothing is absorbed, cached or paged: what the fast forms must agree with. Attention over a cache is in pagedReference.ts.
 */
import { matmul } from "../../ops/matmul/index.ts";
import { rmsNorm } from "../../ops/rmsNorm/index.ts";
import { type RopeSpec, ropeReference } from "../../ops/rope/index.ts";
import type { MlaDims } from "./dims.ts";

/** The layer of DeepSeek-V2 and V3 (arXiv 2405.04434) and of MiniCPM3. */
export interface MlaModuleSpec extends MlaDims {
  readonly hiddenSize: number;
  /** Of a head of qkRopeHeadDim channels. */
  readonly rope: RopeSpec;
  readonly smScale: number;
  /** 1e-6 in all these models, whatever their config says of the other norms. */
  readonly normEps: number;
  /** Tokens of the sequence: decides between the factor lists of longrope. */
  readonly seqLen?: number;
}

/** Matrices are [out features, in features], row by row. */
export interface MlaModuleWeights {
  /** [numHeads * (nope + rope), hiddenSize], or [q rank, hiddenSize] with a norm and a second matrix after it. */
  readonly qProj: ArrayLike<number>;
  readonly qLowRank?: { readonly norm: ArrayLike<number>; readonly qBProj: ArrayLike<number> };
  /** [kvLoraRank + qkRopeHeadDim, hiddenSize]: the latent, then the rope key that all heads share. */
  readonly kvAProj: ArrayLike<number>;
  /** [kvLoraRank]; the rope key is not normed. */
  readonly kvNorm: ArrayLike<number>;
  /** [numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank], the two kinds of rows in turn, head by head. */
  readonly kvBProj: ArrayLike<number>;
  /** [hiddenSize, numHeads * vHeadDim] */
  readonly oProj: ArrayLike<number>;
}

/** Results of every token, and what a cache would keep of them. */
export interface MlaModuleOutputs {
  /** [tokens, hiddenSize] */
  readonly y: Float64Array;
  /** [tokens, numHeads], natural logarithm */
  readonly lse: Float64Array;
  /** [tokens, numHeads, qkNopeHeadDim] and, rotated, [tokens, numHeads, qkRopeHeadDim] */
  readonly qNope: Float64Array;
  readonly qPe: Float64Array;
  /** [tokens, kvLoraRank], normed */
  readonly ckv: Float64Array;
  /** [tokens, qkRopeHeadDim], rotated */
  readonly kpe: Float64Array;
}

/** hidden: [tokens, hiddenSize]. Each token sees those before it and itself; positions only say how far each is rotated. */
export function mlaModule(
  spec: MlaModuleSpec,
  weights: MlaModuleWeights,
  hidden: ArrayLike<number>,
  positions: ArrayLike<number>,
): MlaModuleOutputs {
  const { numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim, normEps: eps } = spec;
  const q = projectQueries(spec, weights, hidden);
  const [qNope, qRope] = splitColumns(q, qkNopeHeadDim, qkRopeHeadDim);
  const qPe = ropeReference(spec.rope, qRope, positions, numHeads, spec.seqLen);
  const [latent, keyRope] = splitColumns(linear(hidden, weights.kvAProj, spec.hiddenSize), kvLoraRank, qkRopeHeadDim);
  const ckv = rmsNorm({ dim: kvLoraRank, eps, weightOffset: 0 }, latent, weights.kvNorm);
  const kpe = ropeReference(spec.rope, keyRope, positions, 1, spec.seqLen);
  const [kNope, v] = splitColumns(linear(ckv, weights.kvBProj, kvLoraRank), qkNopeHeadDim, vHeadDim);

  const out = new Float64Array(positions.length * numHeads * vHeadDim);
  const lse = new Float64Array(positions.length * numHeads);
  for (let token = 0; token < positions.length; token++) {
    for (let head = 0; head < numHeads; head++) {
      const at = token * numHeads + head;
      const logits = Float64Array.from({ length: token + 1 }, (_, t) => {
        const nope = dot(qNope, at * qkNopeHeadDim, kNope, (t * numHeads + head) * qkNopeHeadDim, qkNopeHeadDim);
        return spec.smScale * (nope + dot(qPe, at * qkRopeHeadDim, kpe, t * qkRopeHeadDim, qkRopeHeadDim));
      });
      const max = logits.reduce((a, b) => Math.max(a, b));
      lse[at] = max + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - max), 0));
      for (let t = 0; t <= token; t++) {
        const weight = Math.exp(logits[t] - lse[at]);
        for (let d = 0; d < vHeadDim; d++) out[at * vHeadDim + d] += weight * v[(t * numHeads + head) * vHeadDim + d];
      }
    }
  }
  return { y: linear(out, weights.oProj, numHeads * vHeadDim), lse, qNope, qPe, ckv, kpe };
}

function projectQueries(spec: MlaModuleSpec, weights: MlaModuleWeights, hidden: ArrayLike<number>): Float64Array {
  const first = linear(hidden, weights.qProj, spec.hiddenSize);
  if (!weights.qLowRank) return first;
  const { norm, qBProj } = weights.qLowRank;
  return linear(rmsNorm({ dim: norm.length, eps: spec.normEps, weightOffset: 0 }, first, norm), qBProj, norm.length);
}

function linear(x: ArrayLike<number>, weight: ArrayLike<number>, columns: number): Float64Array {
  return matmul({ weight, columns, rows: weight.length / columns, x });
}

function dot(a: Float64Array, aAt: number, b: Float64Array, bAt: number, length: number): number {
  let sum = 0;
  for (let d = 0; d < length; d++) sum += a[aAt + d] * b[bAt + d];
  return sum;
}

/** Rows of first + second columns as two arrays. */
function splitColumns(rows: Float64Array, first: number, second: number): [Float64Array, Float64Array] {
  const width = first + second;
  return [rows.filter((_, i) => i % width < first), rows.filter((_, i) => i % width >= first)];
}
