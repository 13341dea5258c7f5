/**
 * Kernel parts: extents that are numbers for most specs and only known at run time for Palu's ranks. Rows in scratch are whole registers;
 * what lies past the last channel is zero.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";

type Address = Value<"i32">;

/** A count of channels: known when the kernel is built, or a value. */
export type Extent = number | Value<"i32">;

/** The next multiple of `unit`, a power of two. */
export function roundUp(k: KernelBuilder, count: Extent, unit: number): Extent {
  if (typeof count === "number") return Math.ceil(count / unit) * unit;
  return k.let(count.add(unit - 1).and(-unit));
}

/** `count` channels as bytes of f32. */
export function f32Bytes(k: KernelBuilder, count: Extent): Extent {
  return typeof count === "number" ? count * 4 : k.let(count.shl(2));
}

/** Zeroes what is left of the last register of a row of `count` channels. */
export function clearTail(k: KernelBuilder, row: Address, count: Extent): void {
  if (typeof count === "number") {
    for (let i = count; i % k.lanes !== 0; i++) k.store("f32", row, 0, i * 4);
    return;
  }
  k.for(count, roundUp(k, count, k.lanes), 1, (i) => k.store("f32", row.add(i.shl(2)), 0));
}

/** Zeroes all registers of a row of `count` channels. */
export function zeroRow(k: KernelBuilder, row: Address, count: Extent): void {
  k.for(0, f32Bytes(k, roundUp(k, count, k.lanes)), k.lanes * 4, (d) => k.store("f32v", row.add(d), 0));
}

/** Writes `of(register at byte d)` for every channel of a row in someone else's memory, and nothing past the last. */
export function storeExactly(
  k: KernelBuilder,
  to: Address,
  count: Extent,
  of: { readonly vector: (d: Value<"i32">) => Value<"f32v">; readonly scalar: (d: Value<"i32">) => Value<"f32"> },
): void {
  const whole = typeof count === "number" ? count - (count % k.lanes) : k.let(count.and(-k.lanes));
  k.for(0, f32Bytes(k, whole), k.lanes * 4, (d) => k.store("f32v", to.add(d), of.vector(d)));
  if (typeof count === "number" && count % k.lanes === 0) return;
  k.for(f32Bytes(k, whole), f32Bytes(k, count), 4, (d) => k.store("f32", to.add(d), of.scalar(d)));
}

/** `clearTail` for rows `begin` up to `end` of several, `pitch` bytes apart. */
export function clearRows(
  k: KernelBuilder,
  rows: Address,
  pitch: number,
  channels: number,
  begin: Extent,
  end: Value<"i32">,
): void {
  k.for(begin, end, 1, (j) => clearTail(k, k.let(rows.add(j.mul(pitch))), channels));
}
