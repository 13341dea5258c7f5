/**
 * Tensors in device memory from arrays of the host, and back: for setting up, for tests, and for reading results. Whoever has memory of
 * its own layout writes `{ pointer, shape, type }` by hand; rows of quantised storages are made by `encodeRows` or an append.
 */
import type { CpuDevice, DeviceBuffer } from "../devices/index.ts";
import { decodeRows, type ElementStorage, encodeRows, requireInteger } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, type ElementType, elementBytes, numElements, ShapeError } from "../tensor/index.ts";

/** A dense tensor in a buffer of its own, which its owner frees: `device.free(tensor.buffer)`. */
export interface OwnedTensor extends DeviceTensor {
  readonly buffer: DeviceBuffer;
}

/** What a tensor holds: decoded for the floating-point types. */
export type TensorValues = Float32Array | Int32Array | Int8Array | Uint8Array;

/**
 * A tensor of these values, zeros without any. Throws CapacityError when there is no room, ArgumentError for extents that are no whole
 * numbers, and what `writeTensor` throws.
 */
export function createTensor(
  device: CpuDevice,
  type: ElementType,
  shape: readonly number[],
  values?: ArrayLike<number>,
): OwnedTensor {
  for (const [axis, extent] of shape.entries()) requireInteger(`shape[${axis}]`, extent, 0);
  const buffer = device.allocate(Math.max(4, numElements(shape) * elementBytes(type)), `tensor of ${type}`);
  const tensor = { pointer: buffer.pointer, shape, type, buffer };
  try {
    if (values) writeTensor(device, tensor, values);
    return tensor;
  } catch (error) {
    device.free(buffer);
    throw error;
  }
}

/**
 * Writes all elements of a dense tensor. Numbers are rounded to the nearest of a floating-point type, as an append rounds them. Throws
 * ShapeError for values of another number, ArgumentError for a type that is not one of `TensorValues`, and for a value that an integer
 * type does not have.
 */
export function writeTensor(device: CpuDevice, tensor: DeviceTensor, values: ArrayLike<number>): void {
  const { pointer, shape, type } = tensor;
  const length = numElements(shape);
  if (values.length !== length) {
    throw new ShapeError(
      `values must have the ${length} elements of shape [${shape.join(", ")}], got ${values.length}`,
    );
  }
  if (type === "i32") writeIntegers(device.i32At(pointer, length), type, values);
  else if (type === "i8") writeIntegers(device.i8At(pointer, length), type, values);
  else if (type === "u8") writeIntegers(device.u8At(pointer, length), type, values);
  else {
    const { units } = encodeRows(floatType(type), values, 1);
    device.u8At(pointer, units.byteLength).set(new Uint8Array(units.buffer, units.byteOffset, units.byteLength));
  }
}

/** A typed array would cut off what it has no room for, and a page or a slot would be another one. */
function writeIntegers(to: Int32Array | Int8Array | Uint8Array, type: ElementType, values: ArrayLike<number>): void {
  to.set(values);
  for (let i = 0; i < values.length; i++) {
    if (to[i] !== values[i]) throw new ArgumentError(`values[${i}] must be a number of type ${type}, got ${values[i]}`);
  }
}

/** A copy of all elements, without what lies between the rows. Throws ArgumentError for a type that is not one of `TensorValues`. */
export function readTensor(device: CpuDevice, { pointer, shape, type, rowStride }: RowsTensor): TensorValues {
  const [numRows = 1, ...inner] = shape;
  const rowElements = numElements(inner);
  const size = elementBytes(type);
  const rowBytes = rowElements * size;
  const bytes = new Uint8Array(numRows * rowBytes);
  for (let row = 0; row < numRows; row++) {
    bytes.set(device.u8At(pointer + row * (rowStride ?? rowElements) * size, rowBytes), row * rowBytes);
  }
  return valuesOf(type, bytes.buffer);
}

function valuesOf(type: ElementType, bytes: ArrayBuffer): TensorValues {
  if (type === "i32") return new Int32Array(bytes);
  if (type === "i8") return new Int8Array(bytes);
  if (type === "u8") return new Uint8Array(bytes);
  const storage = floatType(type);
  const units =
    storage === "f32"
      ? new Float32Array(bytes)
      : elementBytes(storage) === 2
        ? new Uint16Array(bytes)
        : new Uint8Array(bytes);
  return decodeRows(storage, { units, scales: new Float32Array(0) }, 1);
}

function floatType(type: ElementType): ElementStorage {
  if (type === "f32" || type === "f16" || type === "bf16" || type === "f8e4m3" || type === "f8e5m2") return type;
  throw new ArgumentError(`type must be a floating-point type of at most 32 bits, i32, i8 or u8, got ${type}`);
}
