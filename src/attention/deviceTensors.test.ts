import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CpuDevice } from "../devices/index.ts";
import { createTensor, readTensor, writeTensor } from "./deviceTensors.ts";

describe("tensors of the host's numbers", () => {
  let device: CpuDevice;
  beforeAll(async () => {
    device = await CpuDevice.create({ threads: 1 });
  });
  afterAll(() => device.close());

  it.each([
    ["f32", [0.1, -2.5, 3e38, -0], [Math.fround(0.1), -2.5, Math.fround(3e38), -0]],
    ["f16", [0.1, -2.5, 1e9, 0], [0.0999755859375, -2.5, 65504, 0]],
    ["bf16", [0.1, -2.5, 1, 0], [0.10009765625, -2.5, 1, 0]],
    ["f8e4m3", [0.1, -2.5, 1000, 0], [0.1015625, -2.5, 448, 0]],
    ["f8e5m2", [0.1, -2.5, 1, 0], [0.09375, -2.5, 1, 0]],
    ["i32", [7, -7, 1 << 30, 0], [7, -7, 1 << 30, 0]],
    ["i8", [7, -7, 127, 0], [7, -7, 127, 0]],
    ["u8", [7, 255, 127, 0], [7, 255, 127, 0]],
  ] as const)("come back from %s as it rounds them", (type, values, expected) => {
    const tensor = createTensor(device, type, [2, 2], values);
    expect([...readTensor(device, tensor)]).toEqual([...expected]);
    device.free(tensor.buffer);
  });

  it("are zeros without values, and read without what lies between their rows", () => {
    const tensor = createTensor(device, "f32", [2, 3]);
    expect([...readTensor(device, tensor)]).toEqual([0, 0, 0, 0, 0, 0]);
    writeTensor(device, tensor, [1, 2, 3, 4, 5, 6]);
    const column = { ...tensor, pointer: tensor.pointer + 4, shape: [2, 1], rowStride: 3 };
    expect([...readTensor(device, column)]).toEqual([2, 5]);
    expect([...readTensor(device, { ...column, shape: [3, 1], rowStride: 0 })]).toEqual([2, 2, 2]);
    device.free(tensor.buffer);
  });

  it("name what does not fit, and leave nothing allocated", () => {
    const before = device.stats().numBuffers;
    expect(() => createTensor(device, "f32", [2, 2], [1])).toThrow(
      "values must have the 4 elements of shape [2, 2], got 1",
    );
    expect(() => createTensor(device, "u16", [1], [1])).toThrow("i32, i8 or u8, got u16");
    expect(() => createTensor(device, "f32", [2, -1])).toThrow("shape[1] must be an integer of at least 0, got -1");
    expect(() => createTensor(device, "i32", [2], [1, 1.5])).toThrow("values[1] must be a number of type i32, got 1.5");
    expect(() => createTensor(device, "u8", [1], [256])).toThrow("values[0] must be a number of type u8, got 256");
    expect(device.stats().numBuffers).toBe(before);
  });
});
