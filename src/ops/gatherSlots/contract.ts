/**
 * Reads the rows of cached tokens from their slots, as f32 rows side by side: the inverse of an append. Prefill that rebuilds keys and
 * values from a latent cache begins with it.
 */
import { ArgumentError } from "../../tensor/index.ts";
import { type PageStorage, type PageStrides, rowScales, validateStorage } from "../attention/storage.ts";
import { checkPositive, checkWrittenRows, countRows, type DeviceTensor, type RowsTensor } from "../elementwise/rows.ts";

/** What specialises the kernel. */
export interface GatherSlotsSpec {
  readonly channels: number;
  readonly pageSize: number;
  readonly storage: PageStorage;
}

/** Row i of `out` [rows, channels] becomes the row of slot slots[i] = page * pageSize + offset. Slots are values: nothing checks them. */
export interface GatherSlotsArgs {
  /** Address of the first page. */
  readonly pages: number;
  readonly strides: Pick<PageStrides, "page" | "slot">;
  /** For storages that have scales: the address of the first page's, and their distances in f32 elements. */
  readonly scales?: number;
  readonly scaleStrides?: Pick<PageStrides, "page" | "slot">;
  /** i32 [rows] */
  readonly slots: DeviceTensor;
  readonly out: RowsTensor;
  /** The entries of `slots` by default. */
  readonly numRows?: number;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit; the row count and the stride of `out` in elements. */
export function checkGatherSlots(
  { channels, pageSize, storage }: GatherSlotsSpec,
  { slots, out, scales, scaleStrides, ...args }: GatherSlotsArgs,
): { readonly numRows: number; readonly outStride: number } {
  checkPositive("channels", channels);
  checkPositive("pageSize", pageSize);
  validateStorage("storage", storage);
  if (slots.type !== "i32") throw new ArgumentError(`slots must be of type i32, got ${slots.type}`);
  const numRows = countRows(args.numRows, slots);
  if (slots.shape.length !== 1 || slots.shape[0] < numRows) {
    throw new ArgumentError(`slots must have at least ${numRows} entries, got shape [${slots.shape.join(", ")}]`);
  }
  if (rowScales(storage, channels) > 0 && (scales === undefined || scaleStrides === undefined)) {
    throw new ArgumentError(`scales and scaleStrides must be given for storage ${JSON.stringify(storage)}`);
  }
  return { numRows, outStride: checkWrittenRows("out", out, numRows, channels) };
}
