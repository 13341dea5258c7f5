/** The kernel that stores latents, and the functions that record an append and a flush. How a row becomes codes is in appendKv's rowEncoder.ts. */
import { defineKernel, f16ToF32, type KernelBuilder, type Value } from "../../kernels/index.ts";
import type { CheckedPages } from "../appendKv/pages.ts";
import { type Address, rowBlocksBytes } from "../appendKv/rowBlocks.ts";
import { rowEncoder } from "../appendKv/rowEncoder.ts";
import { latentTableWords } from "../attention/latent.ts";
import { type PageStorage, storageBytes } from "../attention/storage.ts";
import type { EncodeOptions } from "../attention/storageCodec.ts";
import type { Recorder } from "../recorder.ts";
import {
  type AppendLatentArgs,
  type AppendLatentSpec,
  type CheckedLatentPages,
  checkAppendLatent,
  checkFlushWindow,
  type FlushWindowArgs,
  LARGEST_RANK,
  type LatentPages,
  sum,
} from "./contract.ts";

/** What is compiled for: nothing that differs between layers. */
interface StoreLatentsSpec {
  readonly storage: PageStorage;
  readonly encoding?: EncodeOptions;
  /** Type of the rows that are stored. */
  readonly source: "f32" | "f16";
  /** What a task is given: the slot of row i, or (window, slot in the window, slot). */
  readonly entries: "slots" | "flushes";
}

/** One task is one token: the rows of all its groups with their scales. */
export const storeLatentsKernel = defineKernel({
  name: "storeLatents",
  params: {
    x: "pointer",
    rowBytes: "i32",
    entries: "pointer",
    numWindows: "i32",
    capacity: "i32",
    ranks: "pointer",
    rankBytes: "i32",
    numGroups: "i32",
    numSlots: "i32",
    pageSize: "i32",
    pages: "pointer",
    pageBytes: "i32",
    slotBytes: "i32",
    scales: "pointer",
    scalePageBytes: "i32",
    scaleSlotBytes: "i32",
  },
  scratchBytes: ({ source }: StoreLatentsSpec, target) =>
    rowBlocksBytes(target) + (source === "f16" ? LARGEST_RANK * 4 : 0),
  build(k, { storage, encoding, source, entries }: StoreLatentsSpec, p) {
    const elementBytes = source === "f16" ? 2 : 4;
    const widened = k.let(k.scratch.add(rowBlocksBytes(k)));

    const storeToken = (row: Value<"i32">, slot: Value<"i32">): void => {
      const page = k.let(slot.divU(p.pageSize));
      const offset = k.let(slot.sub(page.mul(p.pageSize)));
      const from = k.var("i32", p.x.add(row.mul(p.rowBytes)));
      const to = k.var("i32", p.pages.add(page.mul(p.pageBytes)).add(offset.mul(p.slotBytes)));
      const scales = k.var("i32", p.scales.add(page.mul(p.scalePageBytes)).add(offset.mul(p.scaleSlotBytes)));
      k.for(0, p.numGroups, 1, (group) => {
        const rank = k.let(k.load("i32", p.ranks.add(group.mul(p.rankBytes))));
        if (source === "f16") widen(k, rank, from.value, widened);
        const encode = rowEncoder(k, { storage, ...encoding }, rank, { scratch: k.scratch });
        encode(source === "f16" ? widened : from.value, to.value, scales.value);
        from.set(from.value.add(rank.mul(elementBytes)));
        to.set(to.value.add(rowBytesOf(storage, rank)));
        scales.set(scales.value.add(scaleBytesOf(k, storage, rank)));
      });
    };

    k.forTasks((task) => {
      if (entries === "slots") {
        const slot = k.let(k.load("i32", p.entries.add(task.shl(2))));
        // Unsigned, so that -1 is past the end like every other value that is no slot.
        k.if(slot.ltU(p.numSlots), () => storeToken(task, slot));
        return;
      }
      const entry = k.let(p.entries.add(task.mul(12)));
      const [window, at, slot] = [0, 4, 8].map((offset) => k.let(k.load("i32", entry, offset)));
      k.if(window.ltU(p.numWindows).and(at.ltU(p.capacity)).and(slot.ltU(p.numSlots)), () =>
        storeToken(k.let(window.mul(p.capacity).add(at)), slot),
      );
    });
  },
});

/** Brings a row of `count` halves to `to` as f32, and reads nothing behind it. */
function widen(k: KernelBuilder, count: Value<"i32">, from: Address, to: Address): void {
  const whole = k.let(count.and(-k.lanes));
  k.for(0, whole, k.lanes, (i) =>
    k.store("f32v", to.add(i.shl(2)), f16ToF32(k, k.load("u16 to i32v", from.add(i.shl(1))))),
  );
  k.for(whole, count, 1, (i) =>
    k.store("f32", to.add(i.shl(2)), f16ToF32(k, k.splat(k.load("u16", from.add(i.shl(1))))).lane(0)),
  );
}

/** `rowElements` of a rank that is known when the kernel runs, in bytes. */
function rowBytesOf(storage: PageStorage, rank: Value<"i32">): Value<"i32"> {
  if (typeof storage === "string" || storage.kind === "tiled") return rank.mul(storageBytes(storage));
  return rank.add(7).shrU(3).mul(storage.bits).add(3).and(-4);
}

/** `rowScales` of such a rank, in bytes. */
function scaleBytesOf(k: KernelBuilder, storage: PageStorage, rank: Value<"i32">): Value<"i32"> {
  const parts = (size: number): Value<"i32"> => rank.add(size - 1).divU(size);
  if (typeof storage === "string") return k.i32(storage === "i8" ? 4 : 0);
  if (storage.kind === "tiled") return parts(storage.tile).shl(2);
  return storage.groupSize === 0 ? k.i32(8) : parts(storage.groupSize).shl(3);
}

/** Records the append of one layer's latents. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordAppendLatent(recorder: Recorder, spec: AppendLatentSpec, args: AppendLatentArgs): void {
  const checked = checkAppendLatent(spec, args);
  const tasks = { entries: "slots", list: args.slotMapping.pointer, numTasks: checked.numTokens } as const;
  const rows = {
    source: "f32",
    k: { x: args.k.pointer, rowBytes: checked.kStride * 4 },
    v: { x: args.v.pointer, rowBytes: checked.vStride * 4 },
    numWindows: 0,
    capacity: 0,
  } as const;
  recordStores(recorder, spec, args, checked, tasks, rows);
}

/** Records that tokens of windows are stored in pages. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordFlushWindow(recorder: Recorder, spec: AppendLatentSpec, args: FlushWindowArgs): void {
  const checked = checkFlushWindow(spec, args);
  const { recent, flushes, layout } = args;
  const elementBytes = storageBytes(recent.type);
  const tasks = { entries: "flushes", list: flushes.pointer, numTasks: checked.numFlushes } as const;
  recordStores(recorder, spec, args, checked, tasks, {
    source: recent.type,
    k: { x: recent.recentK, rowBytes: sum(layout.ranksK) * elementBytes },
    v: { x: recent.recentV, rowBytes: sum(layout.ranksV) * elementBytes },
    numWindows: recent.numWindows,
    capacity: recent.capacity,
  });
}

interface SourceRows {
  readonly x: number;
  readonly rowBytes: number;
}

/** Bytes in the table from the rank of a head's keys to that of its values. */
const VALUE_RANK_OFFSET = 16;

/** A launch for the keys and one beside it for the values. */
function recordStores(
  { device, commands }: Recorder,
  { storage, valueStorage = storage, encoding }: AppendLatentSpec,
  { layout, table }: LatentPages,
  checked: CheckedLatentPages,
  { entries, list, numTasks }: Pick<StoreLatentsSpec, "entries"> & { list: number; numTasks: number },
  rows: Pick<StoreLatentsSpec, "source"> & { k: SourceRows; v: SourceRows; numWindows: number; capacity: number },
): void {
  const store = (type: PageStorage, from: SourceRows, ranks: number, to: CheckedPages, overlap: boolean): void =>
    commands.launch(
      device.compile(storeLatentsKernel, { storage: type, encoding, source: rows.source, entries }),
      {
        x: from.x,
        rowBytes: from.rowBytes,
        entries: list,
        numWindows: rows.numWindows,
        capacity: rows.capacity,
        ranks,
        rankBytes: checked.headsPerGroup * latentTableWords * 4,
        numGroups: layout.numGroups,
        numSlots: to.numSlots,
        pageSize: to.pageSize,
        pages: to.pointer,
        pageBytes: to.pageBytes,
        slotBytes: to.slotBytes,
        scales: to.scales.pointer,
        scalePageBytes: to.scales.pageBytes,
        scaleSlotBytes: to.scales.slotBytes,
      },
      numTasks,
      { overlap },
    );
  store(storage, rows.k, table, checked.kPages, true);
  store(valueStorage, rows.v, table + VALUE_RANK_OFFSET, checked.vPages, false);
}
