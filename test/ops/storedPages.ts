/**
 * Pools of pages for tests: every storage type, in the layouts that caches use, as places in one piece of memory. For tests only.
 */
import type { KvPages } from "../../src/ops/appendKv/index.ts";
import { type PageStorage, rowElements, rowScales, storageBytes } from "../../src/ops/attention/storage.ts";

/** One of every kind, and of grouped codes every width, with whole rows and with groups that end within a row. */
export const storages: readonly PageStorage[] = [
  "f32",
  "f16",
  "bf16",
  "f8e4m3",
  "f8e5m2",
  "i8",
  { kind: "tiled", tile: 8 },
  { kind: "tiled", tile: 32 },
  { kind: "grouped", bits: 2, groupSize: 0 },
  { kind: "grouped", bits: 2, groupSize: 32 },
  { kind: "grouped", bits: 3, groupSize: 0 },
  { kind: "grouped", bits: 3, groupSize: 8 },
  { kind: "grouped", bits: 4, groupSize: 0 },
  { kind: "grouped", bits: 4, groupSize: 24 },
  { kind: "grouped", bits: 8, groupSize: 0 },
  { kind: "grouped", bits: 8, groupSize: 64 },
];

/** [page][slot][head], [page][head][slot], and [page][slot][2 * head] with keys and values in turn and the scales behind their row. */
export const layouts = ["slots first", "heads first", "in turn, scales inside"] as const;
export type Layout = (typeof layouts)[number];

export interface PoolShape {
  readonly storage: PageStorage;
  readonly layout: Layout;
  readonly numPages: number;
  readonly pageSize: number;
  readonly numHeads: number;
  readonly channels: number;
}

/** Keys and values of a pool; pointers are offsets from the beginning of `numBytes` bytes. */
export interface Pool {
  readonly k: KvPages;
  readonly v: KvPages;
  readonly numBytes: number;
}

export function makePool({ storage, layout, numPages, pageSize, numHeads, channels }: PoolShape): Pool {
  const unit = storageBytes(storage);
  const row = rowElements(storage, channels);
  const scales = rowScales(storage, channels);
  const numSlots = numPages * pageSize;
  const common = { type: storage, numSlots, pageSize };
  if (layout === "in turn, scales inside") {
    const words = Math.ceil((row * unit) / 4);
    const headStride = ((words + scales) * 4 * 2) / unit;
    const scaleStrides = { headStride: 2 * (words + scales), slotStride: 2 * numHeads * (words + scales) };
    const pages = (pointer: number): KvPages => ({
      ...common,
      pointer,
      headStride,
      slotStride: numHeads * headStride,
      ...(scales > 0 && { scales: { pointer: pointer + words * 4, ...scaleStrides } }),
    });
    return { k: pages(0), v: pages((words + scales) * 4), numBytes: numSlots * numHeads * headStride * unit };
  }
  const strides = (rowLength: number) =>
    layout === "slots first" ? {} : { slotStride: rowLength, headStride: pageSize * rowLength };
  const rowsBytes = Math.ceil((numSlots * numHeads * row * unit) / 4) * 4;
  const partBytes = rowsBytes + numSlots * numHeads * scales * 4;
  const pages = (pointer: number): KvPages => ({
    ...common,
    pointer,
    ...strides(row),
    ...(scales > 0 && { scales: { pointer: pointer + rowsBytes, ...strides(scales) } }),
  });
  return { k: pages(0), v: pages(partBytes), numBytes: 2 * partBytes };
}

/** The same pages, their memory beginning at `base`. */
export function movedTo(base: number, pages: KvPages): KvPages {
  const { pointer, scales } = pages;
  return {
    ...pages,
    pointer: pointer + base,
    ...(scales && { scales: { ...scales, pointer: scales.pointer + base } }),
  };
}

/** Bytes that nothing writes by chance. */
export function randomBytes(length: number, seed: number): Uint8Array {
  let state = Math.imul(seed + 1, 0x9e3779b1);
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state >>> 24;
  });
}

/** Where two arrays first differ, in words; undefined if they are equal. */
export function difference(got: ArrayLike<number>, want: ArrayLike<number>): string | undefined {
  if (got instanceof Uint8Array && want instanceof Uint8Array && Buffer.compare(got, want) === 0) return undefined;
  if (got.length !== want.length) return `${got.length} elements, not ${want.length}`;
  for (let i = 0; i < got.length; i++) {
    if (!Object.is(got[i], want[i])) return `[${i}] is ${got[i]}, not ${want[i]}`;
  }
  return undefined;
}
