/**
 * The memory of a layer's latents: tensors of pages that hold exactly the ranks, what a token takes in them, and their checks. Which page
 * belongs to whom is src/cache's business.
 */
import type { CpuDevice, DeviceBuffer } from "../../devices/index.ts";
import {
  type LatentLayout,
  type LatentRanks,
  latentTokenBytes,
  type PageStorage,
  type PageStrides,
  rowScales,
  storageBytes,
} from "../../ops/attention/index.ts";
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import { requireType, type StridedTensor, storageRow, stridesOf } from "../tensors.ts";
import { type PaluSpec, paluKernelSpec } from "./spec.ts";

/** Keys and values, or their scales. [pages, pageSize, row], or without pages [tokens, row]. */
export interface LatentTensors {
  readonly k: StridedTensor;
  readonly v: StridedTensor;
}

/**
 * The latents of one layer. Rows of `pages` are `LatentLayout.keyRow` and `valueRow` units, the groups one after the other; grouped
 * storages are u8, tiled ones f8e4m3. `scales` (rows of keyScales and valueScales) exactly for storages that have some.
 */
export interface LatentCache {
  readonly pages: LatentTensors;
  readonly scales?: LatentTensors;
}

/** How a layer's latents are stored. */
export interface LatentStorage {
  readonly storage: PageStorage;
  /** `storage` by default. */
  readonly valueStorage?: PageStorage;
}

/** Pages that fit into so many bytes, over all layers of a model: what Palu's compression is for. A token takes `latentTokenBytes` a layer. */
export function latentCapacity(
  spec: PaluSpec,
  layers: readonly LatentRanks[],
  { numBytes, pageSize }: { readonly numBytes: number; readonly pageSize: number },
): number {
  const kernelSpec = paluKernelSpec(spec);
  const tokenBytes = layers.reduce((sum, ranks) => sum + latentTokenBytes(kernelSpec, ranks), 0);
  return Math.floor(numBytes / (tokenBytes * pageSize));
}

/** A cache in memory of its own; `release` gives it back. */
export interface AllocatedLatentCache extends LatentCache {
  readonly numBytes: number;
  release(): void;
}

/** Allocates the latents of one layer, `numPages` pages. Throws CapacityError when there is no room. */
export function allocateLatentCache(
  device: CpuDevice,
  layout: LatentLayout,
  {
    storage,
    valueStorage = storage,
    numPages,
    pageSize,
  }: LatentStorage & { readonly numPages: number; readonly pageSize: number },
): AllocatedLatentCache {
  const buffers: DeviceBuffer[] = [];
  let numBytes = 0;
  const release = (): void => {
    for (const buffer of buffers.splice(0)) device.free(buffer);
  };
  const allocate = (row: number, unitBytes: number, type: StridedTensor["type"]): StridedTensor => {
    const size = numPages * pageSize * row * unitBytes;
    const buffer = device.allocate(Math.max(size, 4), "latent cache");
    buffers.push(buffer);
    numBytes += size;
    return { pointer: buffer.pointer, shape: [numPages, pageSize, row], type };
  };
  try {
    const k = allocate(layout.keyRow, storageBytes(storage), storageRow(storage, 1).type);
    const v = allocate(layout.valueRow, storageBytes(valueStorage), storageRow(valueStorage, 1).type);
    const hasScales = layout.keyScales + layout.valueScales > 0;
    const scales = hasScales && {
      k: allocate(layout.keyScales, 4, "f32"),
      v: allocate(layout.valueScales, 4, "f32"),
    };
    return { pages: { k, v }, ...(scales && { scales }), numBytes, release };
  } catch (error) {
    release();
    throw error;
  }
}

/** Where a cache's rows lie, as the kernel takes them. */
export interface LocatedLatents {
  readonly kPages: number;
  readonly vPages: number;
  readonly kStrides: PageStrides;
  readonly vStrides: PageStrides;
  readonly kScales?: number;
  readonly vScales?: number;
  readonly kScaleStrides?: PageStrides;
  readonly vScaleStrides?: PageStrides;
}

/** Checks the tensors of a cache. Throws ShapeError or ArgumentError naming the tensor, its shape and the right one. */
export function locateLatents(
  { pages, scales }: LatentCache,
  layout: LatentLayout,
  {
    storage,
    valueStorage = storage,
    pageSize,
    numPages,
  }: LatentStorage & { readonly pageSize?: number; readonly numPages: number },
): LocatedLatents {
  const find = (name: string, tensor: StridedTensor, type: StridedTensor["type"], row: number): PageStrides =>
    locate(name, tensor, type, { row, pageSize, numPages, numGroups: layout.numGroups });
  const located = {
    kPages: pages.k.pointer,
    vPages: pages.v.pointer,
    kStrides: find("pages.k", pages.k, storageRow(storage, 1).type, layout.keyRow),
    vStrides: find("pages.v", pages.v, storageRow(valueStorage, 1).type, layout.valueRow),
  };
  const needsScales = rowScales(storage, 1) + rowScales(valueStorage, 1) > 0;
  if (needsScales !== (scales !== undefined)) {
    const words = `${JSON.stringify(storage)} and ${JSON.stringify(valueStorage)}`;
    throw new ArgumentError(`scales must be ${needsScales ? "given" : "absent"}: the storages are ${words}`);
  }
  if (!scales) return located;
  return {
    ...located,
    kScales: scales.k.pointer,
    vScales: scales.v.pointer,
    kScaleStrides: find("scales.k", scales.k, "f32", layout.keyScales),
    vScaleStrides: find("scales.v", scales.v, "f32", layout.valueScales),
  };
}

function locate(
  name: string,
  tensor: StridedTensor,
  type: StridedTensor["type"],
  {
    row,
    pageSize,
    numPages,
    numGroups,
  }: { readonly row: number; readonly pageSize?: number; readonly numPages: number; readonly numGroups: number },
): PageStrides {
  requireType(name, tensor, type);
  const inner = pageSize === undefined ? [row] : [pageSize, row];
  const { shape } = tensor;
  if (
    shape.length !== inner.length + 1 ||
    shape[0] < numPages ||
    inner.some((extent, axis) => shape[axis + 1] !== extent)
  ) {
    throw new ShapeError(
      `${name} must have shape [at least ${numPages}, ${inner.join(", ")}], got [${shape.join(", ")}]`,
    );
  }
  const strides = stridesOf(name, tensor);
  // The stride is that of groups of equal ranks; the latents of others are found by the layer's table.
  return {
    page: strides[0],
    slot: pageSize === undefined ? strides[0] : strides[1],
    head: Math.floor(row / numGroups),
  };
}
