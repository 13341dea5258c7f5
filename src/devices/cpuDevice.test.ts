import { afterEach, describe, expect, it } from "vitest";
import { defineKernel } from "../kernels/index.ts";
import { CpuDevice } from "./cpuDevice.ts";
import type { CpuDeviceOptions } from "./cpuOptions.ts";

const devices: CpuDevice[] = [];

async function create(options: CpuDeviceOptions = {}): Promise<CpuDevice> {
  const device = await CpuDevice.create({ threads: 1, ...options });
  devices.push(device);
  return device;
}

afterEach(async () => {
  for (const device of devices.splice(0)) await device.close();
});

const addNumber = defineKernel({
  name: "addNumber",
  params: { out: "pointer", by: "f32" },
  build(k, spec: { factor: number }, p) {
    k.forTasks((task) => {
      const at = k.let(p.out.add(task.mul(4)));
      k.store("f32", at, k.load("f32", at).add(p.by.mul(spec.factor)));
    });
  },
});

describe.each([true, false])("CpuDevice with sharedMemory %s", (sharedMemory) => {
  it("allocates aligned zeroed buffers, also where others were", async () => {
    const device = await create({ sharedMemory });
    const first = device.allocate(1000, "first");
    device.u8(first).fill(7);
    device.free(first);
    const second = device.allocate(3000, "second");
    expect(second.pointer).toBe(first.pointer);
    expect(second.pointer % 64).toBe(0);
    expect(device.u8(second).length).toBe(3000);
    expect(device.u8(second).every((byte) => byte === 0)).toBe(true);
  });

  it("shows a buffer as each element type", async () => {
    const device = await create({ sharedMemory });
    const buffer = device.allocate(10, "ten bytes");
    device.u8(buffer).set([0, 0, 0x80, 0x3f, 0xff, 0xff, 0xff, 0xff, 1, 2]);
    expect([...device.f32(buffer).slice(0, 1)]).toEqual([1]);
    expect(device.i32(buffer)[1]).toBe(-1);
    expect(device.u32(buffer)[1]).toBe(2 ** 32 - 1);
    expect(device.i8(buffer)[4]).toBe(-1);
    expect(device.u16(buffer)[4]).toBe(0x201);
    expect(device.f32(buffer).length).toBe(2);
    expect(device.f32At(buffer.pointer, 1)[0]).toBe(1);
    device.free(buffer);
    expect(() => device.f32(buffer)).toThrow('"ten bytes"');
  });

  it("runs a kernel of the kernel language", async () => {
    const device = await create({ sharedMemory });
    const out = device.allocate(8, "out");
    const commands = device.commands();
    commands.launch(device.compile(addNumber, { factor: 3 }), { out: out.pointer, by: 0.5 }, 2);
    await device.run(commands);
    await device.run(commands);
    expect([...device.f32(out)]).toEqual([3, 3]);
  });

  it("reaches addresses above 2^31", async () => {
    const device = await create({ sharedMemory });
    device.allocate(2 ** 31 + 2 ** 20, "never touched");
    const out = device.allocate(64, "high");
    expect(out.pointer).toBeGreaterThan(2 ** 31);
    const commands = device.commands();
    commands.launch(device.compile(addNumber, { factor: 1 }), { out: out.pointer, by: 2 }, 16);
    await device.run(commands);
    expect([...device.f32(out)]).toEqual(new Array(16).fill(2));
    expect([...device.f32At(out.pointer, 2)]).toEqual([2, 2]);
  });
});

describe("CpuDevice", () => {
  it("compiles once for each definition and spec", async () => {
    const device = await create();
    const kernel = device.compile(addNumber, { factor: 1 });
    expect(device.compile(addNumber, { factor: 1 })).toBe(kernel);
    expect(device.compile({ ...addNumber }, { factor: 1 })).toBe(kernel);
    expect(device.stats().numKernels).toBe(1);
    expect(device.compile(addNumber, { factor: 2 })).not.toBe(kernel);
    expect(device.stats().numKernels).toBe(2);
    const impostor = defineKernel({ ...addNumber, build: (k) => k.forTasks(() => {}) });
    expect(() => device.compile(impostor, { factor: 1 })).toThrow("two different kernels are named addNumber");
  });

  it("keeps to maxMemoryBytes", async () => {
    const device = await create({ maxMemoryBytes: 2 ** 20 });
    device.allocate(2 ** 19, "half");
    expect(() => device.allocate(2 ** 20, "too much")).toThrow('no room for 1.0 MiB ("too much")');
    expect(device.stats()).toMatchObject({ usedBytes: 2 ** 19, maxMemoryBytes: 2 ** 20 });
  });

  it.each([
    [{ threads: 0 }, "threads must be a whole number from 1 to 256, got 0"],
    [{ threads: 1.5 }, "got 1.5"],
    [{ threads: 2, sharedMemory: false }, "threads must be 1 without shared memory, got 2"],
    [{ spinMicroseconds: -1 }, "spinMicroseconds must be at least 0, got -1"],
    [{ maxMemoryBytes: 0 }, "maxMemoryBytes must be more than 4096, got 0"],
    [{ maxMemoryBytes: Number.NaN }, "got NaN"],
    [{ maxMemoryBytes: 2 ** 33 }, "maxMemoryBytes must be at most 4294967296, got 8589934592"],
  ])("refuses %o", async (options, message) => {
    await expect(CpuDevice.create(options)).rejects.toThrow(message);
  });
});
