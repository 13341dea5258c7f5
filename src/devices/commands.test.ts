import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { assemble } from "../../test/devices/kernels.ts";
import type { CommandList } from "./commands.ts";
import { CpuDevice } from "./cpuDevice.ts";

let device: CpuDevice;
let commands: CommandList;

/** out[task] = a, out[task + 1] = b */
const store = assemble({
  name: "store",
  params: { out: "pointer", a: "i32", b: "f32" },
  task: `(i32.store (i32.add (local.get $out) (i32.shl (local.get $task) (i32.const 3))) (local.get $a))
    (f32.store offset=4 (i32.add (local.get $out) (i32.shl (local.get $task) (i32.const 3))) (local.get $b))`,
});

beforeAll(async () => {
  device = await CpuDevice.create({ threads: 1 });
  commands = device.commands();
});

afterAll(() => device.close());

describe("CommandList", () => {
  it("passes integers, addresses and floats", async () => {
    const kernel = device.load(store);
    const out = device.allocate(24, "out");
    commands.reset();
    commands.launch(kernel, { b: 0.25, a: -5, out: out.pointer }, 1);
    commands.launch(kernel, { out: out.pointer + 8, a: 2 ** 32 - 1, b: 1e10 }, 1);
    commands.launch(kernel, { out: out.pointer + 16, a: 9, b: Number.NEGATIVE_INFINITY }, 1);
    await device.run(commands);
    const [ints, floats] = [device.i32(out), device.f32(out)];
    expect([ints[0], ints[2], ints[4]]).toEqual([-5, -1, 9]);
    expect([floats[1], floats[3], floats[5]]).toEqual([0.25, 1e10, Number.NEGATIVE_INFINITY]);
  });

  it("refuses wrong arguments", () => {
    const kernel = device.load(store);
    const good = { out: 4096, a: 0, b: 0 };
    const { a: _, ...missing } = good;
    commands.reset();
    expect(() => commands.launch(kernel, missing, 1)).toThrow("launch of store lacks argument a: it takes out, a, b");
    expect(() => commands.launch(kernel, { ...good, c: 1 }, 1)).toThrow("store has no argument c");
    expect(() => commands.launch(kernel, { ...good, a: 0.5 }, 1)).toThrow(
      "argument a of store must be a 32-bit integer",
    );
    expect(() => commands.launch(kernel, { ...good, out: 2 ** 32 }, 1)).toThrow("argument out of store");
    expect(() => commands.launch(kernel, good, -1)).toThrow("numTasks of store");
    expect(() => commands.launch(kernel, good, 0.5)).toThrow("numTasks of store");
    expect(() => commands.launch(kernel, good, 1, { grain: 0 })).toThrow("grain of store");
    expect(() => commands.launch(kernel, { ...missing }, 0)).toThrow("lacks argument a");
    expect(commands.numCommands).toBe(0);
  });

  it("takes a launch of no tasks for none", async () => {
    const kernel = device.load(store);
    const out = device.allocate(8, "out");
    commands.reset();
    commands.launch(kernel, { out: out.pointer, a: 1, b: 1 }, 0);
    expect(commands.numCommands).toBe(0);
    await device.run(commands);
    expect([...device.i32(out)]).toEqual([0, 0]);
  });

  it("grows, and keeps its room when it is reset", async () => {
    const kernel = device.load(store);
    const out = device.allocate(8 * 5000, "out");
    const record = () => {
      commands.reset();
      for (let i = 0; i < 5000; i++) commands.launch(kernel, { out: out.pointer + 8 * i, a: i, b: i }, 1);
    };
    record();
    const { usedBytes } = device.stats();
    await device.run(commands);
    record();
    expect(device.stats().usedBytes).toBe(usedBytes);
    expect(device.i32(out).filter((_, i) => i % 2 === 0)).toEqual(Int32Array.from({ length: 5000 }, (_, i) => i));
  });

  it("counts chunks by stages", () => {
    const kernel = device.load(store);
    const args = { out: 4096, a: 0, b: 0 };
    commands.reset();
    commands.launch(kernel, args, 10, { grain: 4 });
    expect([commands.numChunks, commands.widestStage]).toEqual([3, 3]);
    commands.launch(kernel, args, 2, { grain: 1, overlap: true });
    commands.launch(kernel, args, 0);
    commands.launch(kernel, args, 2, { grain: 1 });
    expect([commands.numChunks, commands.widestStage]).toEqual([7, 4]);
    commands.launch(kernel, args, 1);
    expect([commands.numChunks, commands.widestStage]).toEqual([8, 4]);
  });

  it("keeps devices apart", async () => {
    const other = await CpuDevice.create({ threads: 1 });
    const kernel = other.load(store);
    expect(() => commands.launch(kernel, { out: 0, a: 0, b: 0 }, 1)).toThrow("store was compiled for another device");
    await expect(other.run(commands)).rejects.toThrow("recorded for another device");
    await other.close();
  });

  it("cannot be used after it was freed", () => {
    const list = device.commands();
    list.free();
    expect(() => list.reset()).toThrow("was freed");
    expect(() => list.launch(device.load(store), { out: 0, a: 0, b: 0 }, 1)).toThrow("was freed");
  });
});
