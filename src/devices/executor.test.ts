import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { meet, permuteAndAdd, useScratch } from "../../test/devices/kernels.ts";
import { CpuDevice } from "./cpuDevice.ts";
import type { CpuDeviceOptions } from "./cpuOptions.ts";

const COUNT = 61;

/** What a chain of permuteAndAdd launches gives. */
function expected(numLaunches: number): number[] {
  let values: number[] = new Array(COUNT).fill(0).map((_, i) => i * 1000);
  for (let i = 0; i < numLaunches; i++) values = values.map((_, task) => values[(task * 7 + 3) % COUNT] + 1);
  return values;
}

const settings: [string, CpuDeviceOptions][] = [
  ["1 thread", { threads: 1 }],
  ["1 thread, memory not shared", { threads: 1, sharedMemory: false }],
  ["2 threads", { threads: 2 }],
  ["2 threads that sleep at once", { threads: 2, spinMicroseconds: 0 }],
  ["5 threads", { threads: 5 }],
  ["5 threads that sleep at once", { threads: 5, spinMicroseconds: 0 }],
];

describe.each(settings)("%s", (_name, options) => {
  let device: CpuDevice;
  beforeAll(async () => {
    device = await CpuDevice.create(options);
  });
  afterAll(() => device.close());

  it("waits for each launch before the next", async () => {
    const kernel = device.load(permuteAndAdd(device.features.sharedMemory));
    const buffers = [device.allocate(COUNT * 4, "a"), device.allocate(COUNT * 4, "b")];
    device.i32(buffers[0]).set(expected(0));
    const commands = device.commands();
    for (const grain of [1, 3, 64, undefined, 20]) {
      for (let i = 0; i < 20; i++) {
        const [from, out] = i % 2 === 0 ? buffers : [buffers[1], buffers[0]];
        commands.launch(kernel, { from: from.pointer, out: out.pointer, count: COUNT }, COUNT, { grain });
      }
    }
    for (let run = 1; run <= 10; run++) {
      await device.run(commands);
      expect([...device.i32(buffers[0])]).toEqual(expected(run * 100));
    }
  });

  it("runs a thousand short lists of changing length without a leak", async () => {
    const kernel = device.load(permuteAndAdd(device.features.sharedMemory));
    const buffers = [device.allocate(COUNT * 4, "a"), device.allocate(COUNT * 4, "b")];
    device.i32(buffers[0]).set(expected(0));
    const commands = device.commands();
    const { usedBytes } = device.stats();
    let numLaunches = 0;
    for (let run = 0; run < 1000; run++) {
      commands.reset();
      for (let i = 0; i < run % 5; i++) {
        const from = buffers[numLaunches % 2];
        const out = buffers[(numLaunches + 1) % 2];
        commands.launch(kernel, { from: from.pointer, out: out.pointer, count: COUNT }, COUNT, {
          grain: 1 + (run % 40),
        });
        numLaunches++;
      }
      await device.run(commands);
    }
    expect([...device.i32(buffers[numLaunches % 2])]).toEqual(expected(numLaunches));
    expect(device.stats().usedBytes).toBe(usedBytes);
  });

  it("gives each thread scratch of its own, as large as the kernels need", async () => {
    if (!device.features.sharedMemory) return;
    const commands = device.commands();
    for (const scratchBytes of [100, 5000]) {
      const kernel = device.load(useScratch(scratchBytes));
      const out = device.allocate(400, "scratch addresses");
      commands.reset();
      commands.launch(kernel, { out: out.pointer }, 100, { grain: 1 });
      await device.run(commands);
      const addresses = [...new Set(device.i32(out))].sort((a, b) => a - b);
      expect(addresses.length).toBeLessThanOrEqual(device.threads);
      addresses.forEach((address, i) => {
        expect(address % 64).toBe(0);
        if (i > 0) expect(address - addresses[i - 1]).toBeGreaterThanOrEqual(scratchBytes);
      });
    }
  });
});

describe("overlap", () => {
  it("lets the next launch begin, and the one after it waits for both", async () => {
    const device = await CpuDevice.create({ threads: 3 });
    const kernel = device.load(meet);
    const permute = device.load(permuteAndAdd(true));
    const counter = device.allocate(64, "counter");
    const seen = device.allocate(64, "seen");
    const commands = device.commands();
    // Three launches of one task each that end only when all of them have begun.
    for (const overlap of [true, true, false]) {
      commands.launch(kernel, { counter: counter.pointer, target: 3 }, 1, { overlap });
    }
    commands.launch(permute, { from: counter.pointer, out: seen.pointer, count: 1 }, 1);
    await device.run(commands);
    expect(device.i32(seen)[0]).toBe(4);
    await device.close();
  });

  it("wakes as many sleepers as a launch has chunks", async () => {
    const device = await CpuDevice.create({ threads: 4, spinMicroseconds: 0 });
    const kernel = device.load(meet);
    const counter = device.allocate(64, "counter");
    const commands = device.commands();
    for (let launch = 1; launch <= 20; launch++) {
      commands.launch(kernel, { counter: counter.pointer, target: launch * 5 - 4 }, 1);
      commands.launch(kernel, { counter: counter.pointer, target: launch * 5 }, 4, { grain: 1 });
    }
    await device.run(commands);
    expect(device.i32(counter)[0]).toBe(100);
    await device.close();
  });
});

describe("memory", () => {
  it("that has grown is there for all threads at once", async () => {
    const device = await CpuDevice.create({ threads: 2 });
    const kernel = device.load(meet);
    const commands = device.commands();
    await device.run(commands);
    for (let i = 0; i < 5; i++) {
      device.allocate(100 * 2 ** 20, "never touched");
      const counter = device.allocate(64, "counter");
      const late = device.commands();
      late.launch(kernel, { counter: counter.pointer, target: 2 }, 2, { grain: 1 });
      await device.run(late);
      expect(device.i32(counter)[0]).toBe(2);
    }
    await device.close();
  });
});
