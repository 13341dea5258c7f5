/** What the adapters of vLLM's Palu functions share: the checks of a latent cache and its up-projection, and the spec that follows. */
import { PaluLayer, type PaluSpec } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { ElementStorage, KeyRopeSpec } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, formatShape, ShapeError, sameShape } from "../tensor/index.ts";
import { floatStorage, requireAxes, requireType } from "./attendOnce.ts";

/** vLLM's names of the element types of a cache. "auto": as its tensor says, but none of the 8-bit floats. */
export type KvCacheDtype = "auto" | "fp8" | "fp8_e4m3" | "fp8_e5m2";

/** The cache of a layer, and what rebuilds its keys. */
export interface PaluCacheArgs {
  /**
   * Unrotated key latents, [numBlocks, blockSize, numKvHeads, rankK] of any floating-point type. vLLM's own layout of five axes is refused:
   * see `keyPagesFromVllm`.
   */
  readonly keyCache: DeviceTensor;
  /** Value latents, [numBlocks, blockSize, numKvHeads, rankV] of the same type; vLLM's layout: see `valuePagesFromVllm`. */
  readonly valueCache: DeviceTensor;
  /** [numKvHeads, rankK, headSize] f32: multiplied and summed in f32, whatever the type of the cache. */
  readonly paluKUpProj: DeviceTensor;
  /** "auto" by default. */
  readonly kvCacheDtype?: KvCacheDtype;
  /** [numQHeads] f32 */
  readonly alibiSlopes?: DeviceTensor;
  /** What cached key latents are multiplied with: for 8-bit floats. 1 by default. */
  readonly kScale?: number;
  readonly vScale?: number;
  /** Rotate the rebuilt keys at their absolute positions; the original leaves this undone. Queries come rotated. */
  readonly rope?: KeyRopeSpec;
  /** [positions, rope.dim] f32, rows as RopeTable writes them. */
  readonly ropeTable?: DeviceTensor;
  /** False leaves page ids unread, for callers who know them to be right. */
  readonly checkPages?: boolean;
}

/** Sizes of a cache that passed its checks. */
export interface PaluCacheShape {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly numKvHeads: number;
  readonly headSize: number;
  readonly rankK: number;
  readonly rankV: number;
  readonly storage: ElementStorage;
}

/** Throws ShapeError or ArgumentError naming the tensor that does not fit the others. */
export function checkPaluCache(args: PaluCacheArgs, numQHeads: number, headSize: number): PaluCacheShape {
  const { keyCache, valueCache, paluKUpProj, kvCacheDtype = "auto" } = args;
  if (keyCache.shape.length === 5) {
    throw new ShapeError(
      `keyCache.shape = ${formatShape(keyCache.shape)} is vLLM's x-packed layout: convert it with keyPagesFromVllm`,
    );
  }
  requireAxes("keyCache", keyCache, "numBlocks, blockSize, numKvHeads, rankK");
  requireAxes("valueCache", valueCache, "numBlocks, blockSize, numKvHeads, rankV");
  const [numBlocks, blockSize, numKvHeads, rankK] = keyCache.shape;
  const rankV = valueCache.shape[3];
  // The two caches have strides of their own: their ranks need not be equal.
  if (!sameShape(valueCache.shape.slice(0, 3), keyCache.shape.slice(0, 3))) {
    const expected = `[${numBlocks}, ${blockSize}, ${numKvHeads}, rankV], as keyCache's`;
    throw new ShapeError(
      `valueCache.shape = ${formatShape(valueCache.shape)} must be ${expected} (vLLM's layout: see valuePagesFromVllm)`,
    );
  }
  const upShape = [numKvHeads, rankK, headSize];
  if (!sameShape(paluKUpProj.shape, upShape)) {
    throw new ShapeError(
      `paluKUpProj.shape = ${formatShape(paluKUpProj.shape)} must be [numKvHeads, rankK, headSize] = ${formatShape(upShape)}`,
    );
  }
  requireType("paluKUpProj", paluKUpProj, "f32");
  if (numKvHeads < 1 || numQHeads % numKvHeads !== 0) {
    throw new ArgumentError(`numQHeads = ${numQHeads} must be divisible by the numKvHeads = ${numKvHeads} of keyCache`);
  }
  if (valueCache.type !== keyCache.type) {
    throw new ArgumentError(`valueCache.type = ${valueCache.type} must be that of keyCache, ${keyCache.type}`);
  }
  const storage = floatStorage("keyCache", keyCache);
  checkCacheDtype(kvCacheDtype, storage);
  for (const name of ["kScale", "vScale"] as const) {
    const scale = args[name] ?? 1;
    if (!(scale > 0 && scale < Infinity)) throw new ArgumentError(`${name} = ${scale} must be a positive number`);
  }
  return { numBlocks, blockSize, numKvHeads, headSize, rankK, rankV, storage };
}

function checkCacheDtype(kvCacheDtype: KvCacheDtype, storage: ElementStorage): void {
  const types = { fp8: "f8e4m3", fp8_e4m3: "f8e4m3", fp8_e5m2: "f8e5m2" } as const;
  if (kvCacheDtype === "auto") {
    if (!storage.startsWith("f8")) return;
    throw new ArgumentError(`kvCacheDtype = auto must be fp8_e4m3 or fp8_e5m2 for a keyCache of type ${storage}`);
  }
  const expected = types[kvCacheDtype];
  if (expected === undefined) {
    throw new ArgumentError(`kvCacheDtype = ${kvCacheDtype} must be auto, ${Object.keys(types).join(", ")}`);
  }
  if (storage === expected) return;
  throw new ArgumentError(`keyCache.type = ${storage} must be ${expected} for kvCacheDtype = ${kvCacheDtype}`);
}

/** The spec of a call, M-LRD with equal ranks as the originals have it. */
export function paluSpecOf(args: PaluCacheArgs, shape: PaluCacheShape, numQHeads: number, smScale: number): PaluSpec {
  const { numKvHeads, headSize, rankK, rankV, blockSize, storage } = shape;
  return {
    numQHeads,
    numKvHeads,
    headDim: headSize,
    maxRankK: rankK,
    maxRankV: rankV,
    pageSize: blockSize,
    storage,
    smScale,
    causal: true,
    alibi: args.alibiSlopes !== undefined,
    rope: args.rope,
  };
}

/** The layer of a call: the up-projection stays where it is. */
export function paluLayerOf(device: CpuDevice, spec: PaluSpec, { paluKUpProj }: PaluCacheArgs): PaluLayer {
  const { numKvHeads, maxRankK, maxRankV } = spec;
  const ranks = (rank: number): number[] => Array.from({ length: numKvHeads }, () => rank);
  return new PaluLayer(device, spec, { ranksK: ranks(maxRankK), ranksV: ranks(maxRankV), upK: paluKUpProj });
}

/** The cache with its heads side by side in one row, as the layer has them. */
export function latentRows({ keyCache, valueCache }: PaluCacheArgs) {
  const rows = (tensor: DeviceTensor): DeviceTensor => {
    const [numBlocks, blockSize, numKvHeads, rank] = tensor.shape;
    return { ...tensor, shape: [numBlocks, blockSize, numKvHeads * rank] };
  };
  return { pages: { k: rows(keyCache), v: rows(valueCache) } };
}
