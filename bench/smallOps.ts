/**
 * Speed of the row-wise operations: gigabytes per second that an operation reads and writes, beside a copy of the same memory by the
 * same kernel language, and the microseconds of one call. Rows of a decoding step (few) and of a prefill (many).
 */

import { CpuDevice } from "../src/devices/index.ts";
import { recordAppendKv } from "../src/ops/appendKv/index.ts";
import { recordCopyPages } from "../src/ops/copyPages/index.ts";
import { recordAdd } from "../src/ops/elementwise/index.ts";
import { recordGatedActivation } from "../src/ops/gatedActivation/index.ts";
import {
  recordRowStatistics,
  recordSoftCap,
  recordTopCandidates,
  rowStatisticsWords,
  topCandidatesWords,
} from "../src/ops/logits/index.ts";
import type { Recorder } from "../src/ops/recorder.ts";
import { recordRmsNorm } from "../src/ops/rmsNorm/index.ts";
import { type Bench, type Cell, mapSpread, type Spread, spread } from "./result.ts";

const NUM_ROUNDS = 9;
const ROUND_MS = 20;
const WARM_MS = 100;
const VOCABULARY = 262_144;
const HIDDEN = 640;
const INTERMEDIATE = 2048;
const KV_LENGTH = 256;
const PAGE_BYTES = 64 * 1024;

interface SmallOpTime {
  readonly name: string;
  /** Bytes read and written by one call, each counted once. */
  readonly numBytes: number;
  readonly microseconds: Spread;
}

interface Case {
  readonly name: string;
  readonly numBytes: number;
  record(recorder: Recorder): void;
}

type Allocate = (
  shape: readonly number[],
  type?: "f32" | "i32",
) => { pointer: number; shape: readonly number[]; type: "f32" | "i32" };

/** One buffer of normal-like numbers is shared by all cases; what they write does not matter. */
function cases(allocate: Allocate): Case[] {
  const list: Case[] = [];
  const vector = allocate([HIDDEN]);
  for (const numRows of [1, 16, 512]) {
    const rows = `${numRows} x ${HIDDEN}`;
    const x = allocate([numRows, HIDDEN]);
    const out = allocate([numRows, HIDDEN]);
    const rowBytes = numRows * HIDDEN * 4;
    const spec = { dim: HIDDEN, eps: 1e-6, weightOffset: 1 } as const;
    list.push(
      {
        name: `rmsNorm ${rows}`,
        numBytes: 2 * rowBytes,
        record: (r) => recordRmsNorm(r, { ...spec, residual: "none" }, { x, weight: vector, out }),
      },
      {
        name: `rmsNorm + residual ${rows}`,
        numBytes: 3 * rowBytes,
        record: (r) => recordRmsNorm(r, { ...spec, residual: "add" }, { x, weight: vector, out, residual: out }),
      },
      { name: `add ${rows}`, numBytes: 3 * rowBytes, record: (r) => recordAdd(r, { x, y: vectorRows(vector), out }) },
    );
    const gate = allocate([numRows, INTERMEDIATE]);
    const up = allocate([numRows, INTERMEDIATE]);
    // Not in place: what is multiplied again and again ends among the subnormal numbers, which are slow.
    const activated = allocate([numRows, INTERMEDIATE]);
    for (const activation of ["silu", "geluTanh", "geluErf"] as const) {
      list.push({
        name: `${activation} ${numRows} x ${INTERMEDIATE}`,
        numBytes: 3 * numRows * INTERMEDIATE * 4,
        record: (r) => recordGatedActivation(r, { activation }, { gate, up, out: activated }),
      });
    }
    const kv = allocate([numRows, KV_LENGTH]);
    const slotMapping = allocate([numRows], "i32");
    const pages = allocate([KV_LENGTH]);
    for (const storage of ["f32", "f16"] as const) {
      const kPages = { pointer: pages.pointer, type: storage, numSlots: 1 };
      list.push({
        name: `appendKv ${storage} ${numRows} x ${KV_LENGTH}`,
        numBytes: 2 * numRows * KV_LENGTH * (storage === "f32" ? 8 : 6),
        record: (r) =>
          recordAppendKv(
            r,
            { numKvHeads: 1, headDim: KV_LENGTH, storage },
            { k: kv, v: kv, kPages, vPages: kPages, slotMapping },
          ),
      });
    }
  }
  list.push(...logitsCases(allocate), copyCase(allocate));
  return list;
}

function logitsCases(allocate: Allocate): Case[] {
  return [1, 16].flatMap((numRows) => {
    const logits = allocate([numRows, VOCABULARY]);
    const [argmax, max, logSumExp] = [allocate([numRows], "i32"), allocate([numRows]), allocate([numRows])];
    const workspace = allocate(
      [numRows * Math.max(rowStatisticsWords(VOCABULARY), topCandidatesWords(VOCABULARY, 64))],
      "i32",
    );
    const [tokens, values] = [allocate([numRows, 64], "i32"), allocate([numRows, 64])];
    const numBytes = numRows * VOCABULARY * 4;
    const size = `${numRows} x ${VOCABULARY}`;
    return [
      {
        name: `argmax ${size}`,
        numBytes,
        record: (r: Recorder) => recordRowStatistics(r, { withLogSumExp: false }, { logits, argmax, max, workspace }),
      },
      {
        name: `argmax and logSumExp ${size}`,
        numBytes,
        record: (r: Recorder) =>
          recordRowStatistics(r, { withLogSumExp: true }, { logits, argmax, max, logSumExp, workspace }),
      },
      ...[8, 64].map((numCandidates) => ({
        name: `best ${numCandidates} ${size}`,
        numBytes,
        record: (r: Recorder) => recordTopCandidates(r, { numCandidates }, { logits, tokens, values, workspace }),
      })),
      {
        name: `softCap ${size}`,
        numBytes: 2 * numBytes,
        record: (r: Recorder) => recordSoftCap(r, { logits, cap: 30 }),
      },
    ];
  });
}

/** Half of the pages are copied to the other half: the machine's copying speed, to compare with. */
function copyCase(allocate: Allocate): Case {
  const numCopies = 256;
  const pages = allocate([2 * numCopies, PAGE_BYTES / 4]);
  const copies = allocate([numCopies, 2], "i32");
  const copiesOnHost = Int32Array.from({ length: 2 * numCopies }, (_, i) =>
    i % 2 === 0 ? i / 2 : numCopies + (i - 1) / 2,
  );
  const buffers = [{ pointer: pages.pointer, pageBytes: PAGE_BYTES, numPages: 2 * numCopies }];
  return {
    name: `copyPages ${numCopies} x 64 KiB`,
    numBytes: 2 * numCopies * PAGE_BYTES,
    record(recorder) {
      recorder.device.i32At(copies.pointer, 2 * numCopies).set(copiesOnHost);
      recordCopyPages(recorder, { copies, copiesOnHost, numCopies, buffers });
    },
  };
}

function vectorRows(vector: ReturnType<Allocate>): ReturnType<Allocate> & { rowStride: number } {
  return { ...vector, shape: [1 << 20, HIDDEN], rowStride: 0 };
}

async function measure(device: CpuDevice, { name, numBytes, record }: Case): Promise<SmallOpTime> {
  const commands = device.commands();
  record({ device, commands });
  /** Microseconds a call. */
  const time = async (repeats: number): Promise<number> => {
    const start = performance.now();
    for (let i = 0; i < repeats; i++) await device.run(commands);
    return ((performance.now() - start) * 1000) / repeats;
  };
  // Calls enough for the engine to optimise the kernel, and to know how many make a round.
  for (const end = performance.now() + WARM_MS; performance.now() < end; ) await time(5);
  const repeats = Math.max(2, Math.ceil((ROUND_MS * 1000) / (await time(5))));
  const rounds: number[] = [];
  for (let round = 0; round < NUM_ROUNDS; round++) rounds.push(await time(repeats));
  commands.free();
  return { name, numBytes, microseconds: spread(rounds) };
}

/** All cases on a device with this many threads. */
async function measureAll(threads: number): Promise<SmallOpTime[]> {
  const device = await CpuDevice.create({ threads });
  let seed = 1;
  const allocate: Allocate = (shape, type = "f32") => {
    const buffer = device.allocate(
      shape.reduce((product, extent) => product * extent, 4),
      "bench",
    );
    // Sums of uniform numbers from a 31-bit Lehmer generator: like logits, with rare large ones.
    if (type === "f32") {
      const uniform = (): number => {
        seed = (seed * 48271) % 2147483647;
        return seed / 2147483647;
      };
      const values = device.f32(buffer);
      for (let i = 0; i < values.length; i++) values[i] = (uniform() + uniform() + uniform() + uniform() - 2) * 4;
    }
    return { pointer: buffer.pointer, shape, type };
  };
  const times: SmallOpTime[] = [];
  for (const each of cases(allocate)) times.push(await measure(device, each));
  await device.close();
  return times;
}

export const smallOps: Bench = {
  name: "smallOps",
  summary: "the row-wise operations: GB/s and microseconds a call",
  async run({ threads }) {
    const rows: Cell[][] = [];
    for (const count of threads) {
      for (const { name, numBytes, microseconds } of await measureAll(count)) {
        rows.push([name, count, mapSpread(microseconds, (each) => numBytes / each / 1000), microseconds.median]);
      }
    }
    return {
      name: "smallOps",
      about: `Bytes read and written, each counted once, over the time of a call (median, least and most of ${NUM_ROUNDS} rounds). What is small enough stays in the caches: compare with copying pages, the last line, only what is not.`,
      tables: [{ title: "Row-wise operations", columns: ["operation", "threads", "GB/s", "µs"], rows }],
      remarks: [],
    };
  },
};
