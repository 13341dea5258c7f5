/** Where the latents and rope keys of a paged MLA cache lie: two caches, one of whole rows, or FlashMLA's 8-bit rows. */
import {
  type ElementStorage,
  type PageStorage,
  type PageStrides,
  requireInteger,
  rowScales,
  validateStorage,
} from "../../ops/attention/index.ts";
import { ArgumentError, elementBytes, formatShape, ShapeError } from "../../tensor/index.ts";
import { requireType, type StridedTensor, stridesOf } from "../tensors.ts";
import type { MlaDims } from "./dims.ts";
import { fp8LatentStorage, fp8TokenLayout } from "./fp8Token.ts";

/** Plain elements; rows of bytes as in fp8Token.ts; or e4m3 latents with an f32 scale for every 128 of a token, in a tensor of their own. */
export type MlaStorage = ElementStorage | "fp8Token" | "fp8Tiles";

/** How a cache stores its tokens. */
export interface MlaCacheSpec {
  /** Tokens per page. */
  readonly pageSize: number;
  /** "f32" by default. */
  readonly storage?: MlaStorage;
  /** Storage of rope keys in a cache of their own; `storage` by default, f8e4m3 beside tiles. */
  readonly ropeStorage?: ElementStorage;
}

/**
 * `ckv` [pages, pageSize, kvLoraRank] and `kpe` [pages, pageSize, qkRopeHeadDim] (absent if that is 0); or `fused` [pages, pageSize,
 * kvLoraRank + qkRopeHeadDim], the latent first; for "fp8Token" `fused` is u8 [pages, pageSize, bytes of a token]. `ckvScales` [pages, pageSize,
 * ceil(kvLoraRank / 128)] f32 is for "fp8Tiles".
 */
export type MlaCacheTensors =
  | { readonly ckv: StridedTensor; readonly ckvScales?: StridedTensor; readonly kpe?: StridedTensor }
  | { readonly fused: StridedTensor };

/** One of the two parts of every token. Strides are in units of the storage, those of scales in f32. */
export interface LatentRows {
  readonly storage: PageStorage;
  readonly channels: number;
  readonly pointer: number;
  readonly strides: PageStrides;
  readonly scales?: number;
  readonly scaleStrides?: PageStrides;
}

type CacheDims = Pick<MlaDims, "kvLoraRank" | "qkRopeHeadDim"> & MlaCacheSpec;

/** The storage types of the two parts. Throws ArgumentError for ones that do not go together. */
export function mlaStorages({ storage = "f32", ropeStorage, pageSize, ...dims }: CacheDims): {
  readonly latent: PageStorage;
  readonly rope: ElementStorage;
} {
  requireInteger("pageSize", pageSize, 1);
  if (storage !== "fp8Token") {
    if (ropeStorage !== undefined) validateStorage("ropeStorage", ropeStorage);
    if (storage === "fp8Tiles") return { latent: fp8LatentStorage, rope: ropeStorage ?? "f8e4m3" };
    validateStorage("storage", storage);
    return { latent: storage, rope: ropeStorage ?? storage };
  }
  fp8TokenLayout(dims);
  if (ropeStorage !== undefined && ropeStorage !== "bf16") {
    throw new ArgumentError(`ropeStorage must be bf16 or absent with storage fp8Token, got ${ropeStorage}`);
  }
  return { latent: fp8LatentStorage, rope: "bf16" };
}

/** Finds both parts in the tensors of a call. Throws ShapeError or ArgumentError naming the tensor and what would be right. */
export function locateMlaCache(
  spec: CacheDims,
  tensors: MlaCacheTensors,
  numPages: number,
): { readonly ckv: LatentRows; readonly kpe: LatentRows } {
  const { kvLoraRank, qkRopeHeadDim, storage = "f32" } = spec;
  const { latent, rope } = mlaStorages(spec);
  const places: PartPlaces = {
    ckv: (pointer, strides) => ({ storage: latent, channels: kvLoraRank, pointer, strides }),
    kpe: (pointer, strides) => ({ storage: rope, channels: qkRopeHeadDim, pointer, strides }),
  };
  if (storage === "fp8Token") {
    if (!("fused" in tensors)) throw new ArgumentError("cache must be { fused } for storage fp8Token");
    return locateFp8Tokens(spec, tensors.fused, numPages, places);
  }
  if ("fused" in tensors) {
    if (storage === "fp8Tiles" || rope !== storage) {
      throw new ArgumentError(
        `cache.fused must have one type of elements, got storage ${storage} and ropeStorage ${rope}`,
      );
    }
    const strides = pageStrides("cache.fused", tensors.fused, storage, spec, numPages, kvLoraRank + qkRopeHeadDim);
    const { pointer } = tensors.fused;
    return {
      ckv: places.ckv(pointer, strides),
      kpe: places.kpe(pointer + kvLoraRank * elementBytes(storage), strides),
    };
  }
  const { ckv, kpe, ckvScales } = tensors;
  const type = storage === "fp8Tiles" ? "f8e4m3" : storage;
  const rows = places.ckv(ckv.pointer, pageStrides("cache.ckv", ckv, type, spec, numPages, kvLoraRank));
  const located = { ...rows, ...locateScales(spec, ckvScales, numPages) };
  if (qkRopeHeadDim === 0) {
    if (kpe) throw new ArgumentError("cache.kpe must be absent for qkRopeHeadDim = 0");
    return { ckv: located, kpe: places.kpe(ckv.pointer, rows.strides) };
  }
  if (!kpe) throw new ArgumentError(`cache.kpe must be given for qkRopeHeadDim = ${qkRopeHeadDim}`);
  return {
    ckv: located,
    kpe: places.kpe(kpe.pointer, pageStrides("cache.kpe", kpe, rope, spec, numPages, qkRopeHeadDim)),
  };
}

/** The two parts of a token, once it is known where they lie. */
type PartPlaces = Readonly<Record<"ckv" | "kpe", (pointer: number, strides: PageStrides) => LatentRows>>;

function locateScales(
  spec: CacheDims,
  scales: StridedTensor | undefined,
  numPages: number,
): Pick<LatentRows, "scales" | "scaleStrides"> {
  if ((spec.storage === "fp8Tiles") !== (scales !== undefined)) {
    throw new ArgumentError(
      `cache.ckvScales must be given exactly for storage fp8Tiles, which is ${spec.storage ?? "f32"}`,
    );
  }
  if (!scales) return {};
  const width = rowScales(fp8LatentStorage, spec.kvLoraRank);
  return { scales: scales.pointer, scaleStrides: pageStrides("cache.ckvScales", scales, "f32", spec, numPages, width) };
}

function locateFp8Tokens(
  spec: CacheDims,
  tensor: StridedTensor,
  numPages: number,
  places: PartPlaces,
): { readonly ckv: LatentRows; readonly kpe: LatentRows } {
  const { scalesAt, ropeAt, numBytes } = fp8TokenLayout(spec);
  const { page, slot } = pageStrides("cache.fused", tensor, "u8", spec, numPages, numBytes);
  if (tensor.pointer % 4 !== 0 || page % 4 !== 0 || slot % 4 !== 0) {
    throw new ArgumentError(
      `cache.fused must have its rows at multiples of 4 bytes for their scales, got pointer ${tensor.pointer} and strides ${page}, ${slot}`,
    );
  }
  const inUnits = (bytes: number): PageStrides => ({ page: page / bytes, slot: slot / bytes, head: 0 });
  return {
    ckv: { ...places.ckv(tensor.pointer, inUnits(1)), scales: tensor.pointer + scalesAt, scaleStrides: inUnits(4) },
    kpe: places.kpe(tensor.pointer + ropeAt, inUnits(2)),
  };
}

function pageStrides(
  name: string,
  tensor: StridedTensor,
  type: ElementStorage | "u8",
  { pageSize }: MlaCacheSpec,
  numPages: number,
  width: number,
): PageStrides {
  requireType(name, tensor, type);
  const { shape } = tensor;
  if (shape.length !== 3 || shape[0] < numPages || shape[1] !== pageSize || shape[2] !== width) {
    throw new ShapeError(
      `${name} must have shape [at least ${numPages}, ${pageSize}, ${width}], got ${formatShape(shape)}`,
    );
  }
  const [page, slot] = stridesOf(name, tensor);
  return { page, slot, head: 0 };
}
