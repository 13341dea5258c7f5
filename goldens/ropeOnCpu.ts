/** Runs a rotary golden case on the CPU device, its cos and sin read from the table that the kernel uses. */
import type { CpuDevice } from "../src/devices/index.ts";
import { type RopeSpec, RopeTable, recordRope } from "../src/ops/rope/index.ts";
import type { GoldenCase } from "./case.ts";

export async function ropeOnCpu(
  spec: RopeSpec,
  golden: GoldenCase,
  device: CpuDevice,
  seqLen?: number,
): Promise<Record<string, ArrayLike<number>>> {
  const positions = golden.integers("positions");
  const x = Float32Array.from(golden.input("x"));
  const numRows = positions.length;
  const half = spec.rotaryDim / 2;
  const table = new RopeTable(spec, seqLen).rows(positions.reduce((a, b) => Math.max(a, b)) + 1);

  const buffers = [x, positions, table].map((values) => device.allocate(values.byteLength, "rope golden"));
  const [xBuffer, positionBuffer, tableBuffer] = buffers;
  device.f32(xBuffer).set(x);
  device.i32(positionBuffer).set(positions);
  device.f32(tableBuffer).set(table);
  const commands = device.commands();
  recordRope({ device, commands }, spec, {
    x: xBuffer.pointer,
    positions: positionBuffer.pointer,
    table: tableBuffer.pointer,
    numRows,
    numHeads: golden.requiredNumber("num_heads"),
  });
  await device.run(commands);
  const y = device.f32(xBuffer).slice(0, x.length);
  commands.free();
  for (const buffer of buffers) device.free(buffer);

  const column = (first: number) =>
    Array.from(positions, (position) => [
      ...table.subarray(position * spec.rotaryDim + first, position * spec.rotaryDim + first + half),
    ]).flat();
  return { cos: column(0), sin: column(half), y };
}
