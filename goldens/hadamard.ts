/** Golden cases of the Hadamard transform. */
import { CpuHadamard, hadamardTransform } from "../src/ops/hadamard/index.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";

export async function runHadamard(golden: GoldenCase, target: GoldenTarget): Promise<{ y: ArrayLike<number> }> {
  const dim = golden.requiredNumber("n");
  const x = Float32Array.from(golden.input("x"));
  if (target.name === "reference") return { y: hadamardTransform({ dim }, x) };
  const { device } = target;
  const buffer = device.allocate(x.byteLength, "hadamard golden");
  device.f32(buffer).set(x);
  const rows = { pointer: buffer.pointer, shape: [x.length / dim, dim], type: "f32" } as const;
  const transform = new CpuHadamard(device, { dim });
  const commands = device.commands();
  try {
    transform.record({ commands }, { x: rows, out: rows });
    await device.run(commands);
    return { y: device.f32(buffer).slice(0, x.length) };
  } finally {
    commands.free();
    transform.release();
    device.free(buffer);
  }
}
