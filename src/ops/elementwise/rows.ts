/**
 * Rows of f32 elements in device memory: the shape that the row-wise operations share, and the check of it.
 * Which rows mean what is for each operation's contract to say.
 */
import { ArgumentError, type ElementType, ShapeError } from "../../tensor/index.ts";

/** An array in device memory: `pointer` is a byte offset, `shape` counts elements, outermost extent first. */
export interface DeviceTensor {
  readonly pointer: number;
  readonly shape: readonly number[];
  readonly type: ElementType;
}

/**
 * A tensor seen as rows: `shape[0]` rows of as many elements as the other extents multiply to. `rowStride` (in elements) is the distance
 * between the starts of two rows; without it the rows touch. A wider stride selects columns of a packed matrix, stride 0 repeats one row.
 */
export interface RowsTensor extends DeviceTensor {
  readonly rowStride?: number;
}

/** Elements in one row of a tensor: the product of all extents but the first. */
export function rowLength(tensor: DeviceTensor): number {
  return tensor.shape.slice(1).reduce((product, extent) => product * extent, 1);
}

/**
 * Checks that `tensor` holds at least `numRows` f32 rows of `length` elements and returns its row stride in elements.
 * Throws ShapeError or ArgumentError naming `argument`.
 */
export function checkRows(argument: string, tensor: RowsTensor, numRows: number, length: number): number {
  checkType(argument, tensor, "f32");
  if (tensor.shape.length < 2 || rowLength(tensor) !== length) {
    throw new ShapeError(`${argument} must have rows of ${length} elements, got shape [${tensor.shape.join(", ")}]`);
  }
  const stride = tensor.rowStride ?? length;
  if (!Number.isInteger(stride) || (stride < length && stride !== 0)) {
    throw new ArgumentError(`${argument}.rowStride must be 0 or an integer of at least ${length}, got ${stride}`);
  }
  if (tensor.shape[0] < numRows) {
    throw new ShapeError(`${argument} must have at least ${numRows} rows, got shape [${tensor.shape.join(", ")}]`);
  }
  return stride;
}

/** As `checkRows`, for a tensor that is written: its rows must not overlap. */
export function checkWrittenRows(argument: string, tensor: RowsTensor, numRows: number, length: number): number {
  const stride = checkRows(argument, tensor, numRows, length);
  if (stride < length && numRows > 1) {
    throw new ArgumentError(
      `${argument}.rowStride must be at least ${length} because its rows are written, got ${stride}`,
    );
  }
  return stride;
}

/** Checks that `tensor` is a vector of `length` f32 elements. Throws ShapeError or ArgumentError naming `argument`. */
export function checkVector(argument: string, tensor: DeviceTensor, length: number): void {
  checkType(argument, tensor, "f32");
  if (tensor.shape.length !== 1 || tensor.shape[0] !== length) {
    throw new ShapeError(`${argument} must have shape [${length}], got [${tensor.shape.join(", ")}]`);
  }
}

/** Checks the number of rows a call is about: from `numRows` where it is given, from the tensor's first extent otherwise. */
export function countRows(numRows: number | undefined, tensor: DeviceTensor): number {
  const count = numRows ?? tensor.shape[0];
  if (!Number.isInteger(count) || count < 0) {
    throw new ArgumentError(`numRows must be a whole number of at least 0, got ${count}`);
  }
  return count;
}

/** Checks a size of a spec. Throws ArgumentError naming it. */
export function checkPositive(name: string, value: number): void {
  if (!Number.isInteger(value) || value < 1) {
    throw new ArgumentError(`${name} must be a whole number of at least 1, got ${value}`);
  }
}

function checkType(argument: string, tensor: DeviceTensor, type: "f32"): void {
  if (tensor.type !== type) throw new ArgumentError(`${argument} must be of type ${type}, got ${tensor.type}`);
  if (tensor.pointer % 4 !== 0) {
    throw new ArgumentError(`${argument}.pointer must be a multiple of 4, got ${tensor.pointer}`);
  }
}
