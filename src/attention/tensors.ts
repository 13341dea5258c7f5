/**
 * The tensors of an attention call: how keys and values may be handed over, the checks of shapes and types, and the strides that
 * follow. What is computed from them is the business of batchAttention.ts and its neighbours.
 */
import { type PageStorage, type PageStrides, rowElements, rowScales } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, type ElementType, elementBytes, formatShape, ShapeError, sameShape } from "../tensor/index.ts";

/** A tensor whose elements need not lie in row-major order: `strides` counts elements between neighbours along each axis. */
export interface StridedTensor extends DeviceTensor {
  /** As many as `shape` has extents, the last one 1. Row-major without padding by default. */
  readonly strides?: readonly number[];
}

/** Order of the axes of a page, FlashInfer's names: [slot, kv head, channel] or [kv head, slot, channel]. */
export type KvLayout = "NHD" | "HND";

/**
 * Keys and values, or the scales of their rows, in one of three forms. For pages in NHD: `k` and `v` [pages, pageSize, numKvHeads,
 * headDim] each; `kv` [pages, 2, pageSize, numKvHeads, headDim], keys first; `combined` [pages, pageSize, 2 * numKvHeads, headDim], keys at even
 * and values at odd heads. HND swaps pageSize and heads. Without pages: [tokens, heads, headDim], or [heads, tokens, headDim] in HND.
 */
export type KvTensors =
  | { readonly k: StridedTensor; readonly v: StridedTensor }
  | { readonly kv: StridedTensor }
  | { readonly combined: StridedTensor };

/** What the tensors of a call have to fit to. */
export interface KvShape {
  readonly layout: KvLayout;
  /** Absent for contiguous rows. */
  readonly pageSize?: number;
  readonly numKvHeads: number;
  /** Pages, or rows of contiguous keys, that the tensors must at least have. */
  readonly numPages: number;
  readonly k: RowShape;
  readonly v: RowShape;
}

/** One head's row of keys or values. */
export interface RowShape {
  readonly elements: number;
  readonly type: ElementType;
}

/** Where keys or values begin, and the distances between them. */
export interface LocatedPages {
  readonly pointer: number;
  readonly strides: PageStrides;
}

/** The row of a head with so many channels, as tensors of this storage have it. */
export function storageRow(storage: PageStorage, channels: number): RowShape {
  const type = typeof storage === "string" ? storage : storage.kind === "tiled" ? "f8e4m3" : "u8";
  return { elements: rowElements(storage, channels), type };
}

/** The scales of such a row: none for plain elements. */
export function scaleRow(storage: PageStorage, channels: number): RowShape {
  return { elements: rowScales(storage, channels), type: "f32" };
}

/** Finds keys and values in the tensors. Throws ShapeError or ArgumentError naming the tensor, its shape and the right one. */
export function locateKv(
  name: string,
  tensors: KvTensors,
  shape: KvShape,
): { readonly k: LocatedPages; readonly v: LocatedPages } {
  if ("k" in tensors) {
    return {
      k: locate(`${name}.k`, tensors.k, shape, shape.k),
      v: locate(`${name}.v`, tensors.v, shape, shape.v),
    };
  }
  const form = "kv" in tensors ? "kv" : "combined";
  if (shape.k.elements !== shape.v.elements || shape.k.type !== shape.v.type) {
    throw new ArgumentError(
      `${name}.${form} needs keys and values of one size and type, got ${shape.k.elements} of ${shape.k.type} and ${shape.v.elements} of ${shape.v.type}`,
    );
  }
  const elementSize = elementBytes(shape.k.type);
  const halves = ({ pointer, strides }: LocatedPages, valuesAfter: number) => ({
    k: { pointer, strides },
    v: { pointer: pointer + valuesAfter * elementSize, strides },
  });
  if ("kv" in tensors) {
    if (shape.pageSize === undefined)
      throw new ArgumentError(`${name}.kv needs a pageSize: contiguous rows come as k and v`);
    const strides = stridesOf(`${name}.kv`, tensors.kv);
    return halves(locate(`${name}.kv`, tensors.kv, shape, shape.k, 2), strides[1]);
  }
  const both = { ...shape, numKvHeads: 2 * shape.numKvHeads };
  const { pointer, strides } = locate(`${name}.combined`, tensors.combined, both, shape.k);
  return halves({ pointer, strides: { ...strides, head: 2 * strides.head } }, strides.head);
}

/** `parts` = 2 for an axis of keys and values after the pages. */
function locate(name: string, tensor: StridedTensor, shape: KvShape, row: RowShape, parts?: 2): LocatedPages {
  const { layout, pageSize, numKvHeads, numPages } = shape;
  requireType(name, tensor, row.type);
  const isPaged = pageSize !== undefined;
  // Contiguous rows are pages of one token: the axis of the tokens takes the place of the pages.
  const headFirst = layout === "HND";
  const inner = isPaged ? (headFirst ? [numKvHeads, pageSize] : [pageSize, numKvHeads]) : [numKvHeads];
  const expected = [...(parts ? [parts] : []), ...inner, row.elements];
  const pageAxis = !isPaged && headFirst ? 1 : 0;
  const others = tensor.shape.filter((_, axis) => axis !== pageAxis);
  if (
    tensor.shape.length !== expected.length + 1 ||
    !sameShape(others, expected) ||
    tensor.shape[pageAxis] < numPages
  ) {
    const words = expected.map(String);
    words.splice(pageAxis, 0, `at least ${numPages}`);
    throw new ShapeError(`${name} must have shape [${words.join(", ")}], got ${formatShape(tensor.shape)}`);
  }
  const strides = stridesOf(name, tensor);
  const last = tensor.shape.length - 1;
  const page = strides[pageAxis];
  if (!isPaged) return { pointer: tensor.pointer, strides: { page, slot: page, head: strides[1 - pageAxis] } };
  const [slot, head] = headFirst ? [strides[last - 1], strides[last - 2]] : [strides[last - 2], strides[last - 1]];
  return { pointer: tensor.pointer, strides: { page, slot, head } };
}

/**
 * Elements between neighbours along each axis. Throws ArgumentError for strides that are none, and for a tensor that would end past the
 * last address: a kernel would wrap around and read what is at the first ones.
 */
export function stridesOf(name: string, tensor: StridedTensor): readonly number[] {
  const { shape, strides = rowMajorStrides(shape) } = tensor;
  const fits = strides.length === shape.length && strides.every((stride) => Number.isInteger(stride) && stride >= 0);
  if (!fits || strides[strides.length - 1] !== 1) {
    throw new ArgumentError(
      `${name}.strides must be ${shape.length} whole numbers, the last one 1, got [${strides.join(", ")}]`,
    );
  }
  const last = strides.reduce((sum, stride, axis) => sum + stride * Math.max(0, shape[axis] - 1), 0);
  const end = tensor.pointer + (last + 1) * elementBytes(tensor.type);
  if (end <= 2 ** 32) return strides;
  throw new ArgumentError(`${name} must end within 2^32 bytes, which a device addresses, but reaches to ${end}`);
}

/** Strides of a tensor without padding. */
function rowMajorStrides(shape: readonly number[]): number[] {
  const strides = shape.map(() => 1);
  for (let axis = shape.length - 2; axis >= 0; axis--) strides[axis] = strides[axis + 1] * shape[axis + 1];
  return strides;
}

/** Checks f32 rows of heads, [at least numRows, heads, channels], and returns their row stride in elements. Throws naming `name`. */
export function checkHeads(name: string, tensor: RowsTensor, numRows: number, heads: number, channels: number): number {
  requireType(name, tensor, "f32");
  const { shape } = tensor;
  if (shape.length !== 3 || shape[0] < numRows || shape[1] !== heads || shape[2] !== channels) {
    throw new ShapeError(
      `${name} must have shape [at least ${numRows}, ${heads}, ${channels}], got ${formatShape(shape)}`,
    );
  }
  const length = heads * channels;
  const { rowStride = length } = tensor;
  if (Number.isInteger(rowStride) && rowStride >= length) return rowStride;
  throw new ArgumentError(`${name}.rowStride must be an integer of at least ${length}, got ${rowStride}`);
}

/** Checks a dense tensor of exactly this shape. Throws ShapeError or ArgumentError naming `name`. */
export function checkTensor(name: string, tensor: DeviceTensor, type: ElementType, shape: readonly number[]): void {
  requireType(name, tensor, type);
  if (sameShape(tensor.shape, shape)) return;
  throw new ShapeError(`${name} must have shape ${formatShape(shape)}, got ${formatShape(tensor.shape)}`);
}

/** Throws ArgumentError unless the tensor has this element type and begins at a multiple of its size. */
export function requireType(name: string, { type, pointer }: DeviceTensor, expected: ElementType): void {
  if (type !== expected) throw new ArgumentError(`${name} must be of type ${expected}, got ${type}`);
  const size = elementBytes(expected);
  if (pointer % size !== 0) throw new ArgumentError(`${name}.pointer must be a multiple of ${size}, got ${pointer}`);
}
