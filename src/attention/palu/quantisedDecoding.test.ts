import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { paluSpec, stored, upProjection } from "../../../test/fixtures/attention/palu.ts";
import { largestError } from "../../../test/fixtures/attention/ragged.ts";
import { normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import {
  type RecentWindows,
  recordAppendLatent,
  recordFlushWindow,
  windowPages,
} from "../../ops/appendLatent/index.ts";
import { attentionReference, nhdStrides, type PageStorage } from "../../ops/attention/index.ts";
import { RopeTable } from "../../ops/rope/index.ts";
import {
  allocateLatentCache,
  BatchPaluAttention,
  type LatentWindow,
  LatentWindows,
  PaluLayer,
  paluKernelSpec,
} from "./index.ts";

function opened(windows: LatentWindows, numCached = 0): LatentWindow {
  const window = windows.open(numCached);
  if (!window) throw new Error("no window is free");
  return window;
}

describe.each(Object.entries(testDevices))("a quantised cache with a recent window on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterAll(() => test.close());

  it.each([2, 3, 4, 8] as const)("of %i bits decodes as the reference over what was stored", async (bits) => {
    const { device } = test;
    const pageSize = 4;
    const storage: PageStorage = { kind: "grouped", bits, groupSize: 8 };
    const spec = paluSpec({ storage, recent: "f32", maxRankK: 20, maxRankV: 20, pageSize });
    const ranks = { ranksK: [20, 13], ranksV: [9, 20] };
    const upK = upProjection(ranks.ranksK, spec.numKvHeads, spec.headDim, 3);
    const layer = new PaluLayer(device, spec, { ...ranks, upK });
    const { layout } = layer;
    const numPages = 16;
    const numSlots = numPages * pageSize;
    const cache = allocateLatentCache(device, layout, { storage, numPages, pageSize });
    if (!cache.scales) throw new Error("grouped storages have scales");
    const windows = new LatentWindows({ numWindows: 2, capacity: 8, blockSize: 4 });
    const [keyRow, valueRow] = [layout.keyRanks, layout.valueRanks];
    const [recentK, recentV] = [keyRow, valueRow].map((row) =>
      test.f32([2, 8, row], new Float32Array(2 * 8 * row).fill(Number.NaN)),
    );
    const recent: RecentWindows = {
      type: "f32",
      capacity: 8,
      numWindows: 2,
      recentK: recentK.pointer,
      recentV: recentV.pointer,
    };
    const latentPages = {
      layout,
      table: layer.table,
      kPages: { pointer: cache.pages.k.pointer, type: storage, numSlots, scales: { pointer: cache.scales.k.pointer } },
      vPages: { pointer: cache.pages.v.pointer, type: storage, numSlots, scales: { pointer: cache.scales.v.pointer } },
    };
    const ropeRows = new RopeTable({
      headDim: 16,
      rotaryDim: 16,
      style: "halves",
      theta: 10000,
      scaling: { type: "default" },
    }).rows(64);
    const ropeTable = test.f32([64, 16], ropeRows);
    const attention = new BatchPaluAttention(device, spec);
    const sequences = [0, 1].map((s) => ({
      window: opened(windows),
      blockTable: Int32Array.from({ length: 8 }, (_, j) => 8 * s + ((5 * j) % 8)),
      k: normals(40 * keyRow, 10 + s),
      v: normals(40 * valueRow, 20 + s),
    }));

    // A prompt longer than a window and one shorter, then tokens one by one past several flushes.
    const steps = [[19, 3], [1, 1], [0, 4], ...Array.from({ length: 9 }, () => [1, 1])];
    for (const [n, counts] of steps.entries()) {
      const before = sequences.map(({ window }) => window.numTokens);
      const step = windows.step(
        sequences.map(({ window, blockTable }, s) => ({ window, blockTable, numNewTokens: counts[s] })),
        pageSize,
      );
      const rows = (name: "k" | "v", row: number) =>
        Float32Array.from(
          sequences.flatMap((sequence, s) => [
            ...sequence[name].subarray(before[s] * row, (before[s] + counts[s]) * row),
          ]),
        );
      const total = counts[0] + counts[1];
      const [k, v] = [test.f32([total, keyRow], rows("k", keyRow)), test.f32([total, valueRow], rows("v", valueRow))];
      const q = normals(total * 4 * 16, 100 + n);
      const batch = {
        numRows: total,
        numSeqs: 2,
        queryIndptr: Int32Array.of(0, counts[0], total),
        kvLens: Int32Array.from(sequences, ({ window }) => window.numTokens),
        blockTables: Int32Array.from(sequences.flatMap(({ blockTable }) => [...blockTable])),
        maxPages: 8,
        numPages,
        recent: step.recent,
      };
      attention.plan(batch);
      const [out, lse] = [
        test.f32([total, layout.outRow], new Float32Array(total * layout.outRow)),
        test.f32([total, 4], new Float32Array(total * 4)),
      ];
      await test.run((recorder) => {
        if (step.flushes.length > 0) {
          const flushes = test.i32([step.flushes.length / 3, 3], step.flushes);
          recordFlushWindow(recorder, { storage }, { ...latentPages, recent, flushes });
        }
        const append = { ...latentPages, k, v };
        recordAppendLatent(recorder, { storage }, { ...append, slotMapping: test.i32([total], step.pageSlots) });
        const intoWindows = { ...append, ...windowPages(recent), slotMapping: test.i32([total], step.windowSlots) };
        recordAppendLatent(recorder, { storage: "f32" }, intoWindows);
        attention.record(recorder, {
          layer,
          cache,
          recent: { k: recentK, v: recentV },
          q: test.f32([total, 4, 16], q),
          ropeTable,
          out,
          lse,
        });
      });

      // The definition: quantised before the window's start, as they came from there on.
      const seen = (name: "k" | "v", row: number, groups: readonly number[]) =>
        Float64Array.from(
          sequences.flatMap((sequence) => {
            const quantised = stored(storage, groups, sequence[name]);
            return Array.from({ length: 40 * row }, (_, i) =>
              Math.floor(i / row) < sequence.window.start ? quantised[i] : sequence[name][i],
            );
          }),
        );
      const strides = (row: number) => nhdStrides({ numKvHeads: 1, headDim: row });
      const { recent: _recent, ...kernelSpec } = spec;
      const want = attentionReference(
        paluKernelSpec({ ...kernelSpec, pageSize: undefined }),
        { ...batch, blockTables: Int32Array.of(0, 40), maxPages: 1, numPages: 80, recent: undefined },
        {
          q,
          kPages: seen("k", keyRow, ranks.ranksK),
          vPages: seen("v", valueRow, ranks.ranksV),
          kStrides: strides(keyRow),
          vStrides: strides(valueRow),
          ropeTable: ropeRows,
          latent: { ...ranks, up: upK },
        },
      );
      expect(largestError(test.readF32(out), Float32Array.from(want.out)), `step ${n}`).toBeLessThan(5e-6);
      expect(largestError(test.readF32(lse), Float32Array.from(want.lse)), `step ${n}`).toBeLessThan(3e-6);
    }
    expect(sequences.map(({ window }) => window.start)).toEqual([24, 12]);
    attention.release();
    cache.release();
    layer.release();
    test.clear();
  });
});
