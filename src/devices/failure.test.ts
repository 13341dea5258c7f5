/** What happens when a kernel traps, a worker dies, or the device is closed in the middle. */

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, it } from "vitest";
import { permuteAndAdd, trapAt, useScratch, workerStays, workerTraps } from "../../test/devices/kernels.ts";
import { SCRATCH_POINTER } from "./controlBlock.ts";
import { CpuDevice } from "./cpuDevice.ts";
import { nodePlatform } from "./platform.node.ts";
import type { Platform, WorkerHandle } from "./platform.ts";

const devices: CpuDevice[] = [];
const workers: WorkerHandle[] = [];

const watchedPlatform: Platform = {
  availableThreads: 2,
  macrotask: nodePlatform.macrotask,
  spawn(start, events) {
    const worker = nodePlatform.spawn(start, events);
    workers.push(worker);
    return worker;
  },
};

async function create(threads: number): Promise<CpuDevice> {
  const device = await CpuDevice.create({ threads, platform: watchedPlatform });
  devices.push(device);
  return device;
}

afterEach(async () => {
  for (const device of devices.splice(0)) await device.close();
  workers.length = 0;
});

/** Runs once with scratch, and returns the address of thread 0's. */
async function firstScratch(device: CpuDevice): Promise<number> {
  const commands = device.commands();
  commands.launch(device.load(useScratch(64)), { out: device.allocate(4, "out").pointer }, 1);
  await device.run(commands);
  return device.i32At(SCRATCH_POINTER * 4, 1)[0];
}

/** A list that a worker will never finish. */
async function endlessList(device: CpuDevice) {
  const counter = device.allocate(4, "counter");
  const commands = device.commands();
  const first = await firstScratch(device);
  commands.launch(device.load(workerStays), { counter: counter.pointer, first }, 2, { grain: 1 });
  return commands;
}

const after = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

describe("a kernel that traps", () => {
  it.each([1, 3])("rejects the run with its name, and the device stays usable, with %i threads", async (threads) => {
    const device = await create(threads);
    const trap = device.load(trapAt);
    const permute = device.load(permuteAndAdd(true));
    const [from, out] = [device.allocate(4, "from"), device.allocate(4, "out")];
    const commands = device.commands();
    for (let round = 0; round < 20; round++) {
      commands.reset();
      commands.launch(trap, { bad: 50 }, 100, { grain: 1 });
      commands.launch(permute, { from: from.pointer, out: out.pointer, count: 1 }, 1);
      await expect(device.run(commands)).rejects.toThrow(/kernel trapAt failed on thread \d: unreachable/);
      expect(device.i32(out)[0]).toBe(0);
      commands.reset();
      commands.launch(trap, { bad: -1 }, 100, { grain: 1 });
      await device.run(commands);
    }
  });

  it("on a worker", async () => {
    const device = await create(2);
    const first = await firstScratch(device);
    const counter = device.allocate(4, "counter");
    const commands = device.commands();
    commands.launch(device.load(workerTraps), { counter: counter.pointer, first }, 2, { grain: 1 });
    await expect(device.run(commands)).rejects.toThrow("kernel workerTraps failed on thread 1: unreachable");
  });

  it("or cannot be compiled is named too", async () => {
    const device = await create(2);
    const commands = device.commands();
    const broken = device.load({ name: "broken", bytes: new Uint8Array(8), params: [], scratchBytes: 0 });
    commands.launch(broken, {}, 1);
    await expect(device.run(commands)).rejects.toThrow(/kernel broken failed on thread \d: .*WebAssembly/);
  });
});

describe("a worker that dies", () => {
  it("inside a kernel rejects this run, the next, and those that wait", async () => {
    const device = await create(2);
    const commands = await endlessList(device);
    const started = performance.now();
    const pending = device.run(commands);
    const waiting = device.run(device.commands());
    setTimeout(() => workers[0].terminate(), 30);
    await expect(pending).rejects.toThrow("worker 1 of the cpu device died");
    await expect(waiting).rejects.toThrow("worker 1 of the cpu device died");
    await expect(device.run(device.commands())).rejects.toThrow("worker 1 of the cpu device died");
    expect(performance.now() - started).toBeLessThan(1000);
  });

  it("while idle rejects later runs", async () => {
    const device = await create(3);
    await device.run(device.commands());
    workers[1].terminate();
    await after(100);
    await expect(device.run(device.commands())).rejects.toThrow("worker 2 of the cpu device died");
  });

  it("before it serves rejects create", async () => {
    const platform: Platform = {
      ...watchedPlatform,
      spawn(start, events) {
        const worker = watchedPlatform.spawn(start, events);
        worker.terminate();
        return worker;
      },
    };
    await expect(CpuDevice.create({ threads: 2, platform })).rejects.toThrow("worker 1 of the cpu device died");
  });
});

describe("close", () => {
  it("may be called twice, and nothing runs afterwards", async () => {
    const device = await create(2);
    await Promise.all([device.close(), device.close()]);
    await device.close();
    await expect(device.run(device.commands())).rejects.toThrow("the cpu device was closed");
  });

  it("rejects a pending run, and ends a worker that is inside a kernel", async () => {
    const device = await create(2);
    const pending = device.run(await endlessList(device));
    const outcome = expect(pending).rejects.toThrow("the cpu device was closed");
    await after(10);
    await device.close();
    await outcome;
  });

  it("a list that runs cannot be changed", async () => {
    const device = await create(2);
    const commands = await endlessList(device);
    const pending = device.run(commands);
    const outcome = expect(pending).rejects.toThrow("closed");
    expect(() => commands.reset()).toThrow("is running");
    await expect(device.run(commands)).rejects.toThrow("is running");
    await device.close();
    await outcome;
  });

  it.each(["await device.close();", ""])("the process ends by itself after %o", (ending) => {
    const url = new URL("./cpuDevice.ts", import.meta.url).href;
    const script = `import { CpuDevice } from ${JSON.stringify(url)};
      const device = await CpuDevice.create({ threads: 3 });
      await device.run(device.commands());
      ${ending}
      console.log("ended");`;
    const result = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
      cwd: fileURLToPath(new URL(".", import.meta.url)),
      timeout: 5000,
      encoding: "utf8",
    });
    expect(result).toMatchObject({ status: 0, stdout: "ended\n" });
  });
});
