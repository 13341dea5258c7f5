/** How fast this machine reads memory, with the same vector loads and threads that decoding uses: the bound of every decode step. */

import { CpuDevice } from "../devices/index.ts";
import { defineKernel } from "../kernels/index.ts";

/** Larger than any cache that is likely here. */
const BUFFER_BYTES = 256 * 2 ** 20;
const TASK_BYTES = 2 ** 18;
/** Long enough for the engine to replace its quick first code of the kernel by the optimised one. */
const MEASURE_MS = 600;
const LEAST_RUNS = 5;

/** Adds up `taskBytes` of memory in four independent sums, so that the loads and not the additions set the pace. */
const readMemory = defineKernel({
  name: "readMemory",
  params: { from: "pointer", out: "pointer" },
  build(k, { taskBytes }: { readonly taskBytes: number }, { from, out }) {
    const vectorBytes = 4 * k.lanes;
    k.forTasks((task) => {
      const start = k.let(from.add(task.mul(taskBytes)));
      const sums = Array.from({ length: 4 }, () => k.var("i32v", k.all("i32v", 0)));
      k.for(0, taskBytes, 4 * vectorBytes, (offset) => {
        const at = k.let(start.add(offset));
        for (const [i, sum] of sums.entries()) sum.set(sum.value.add(k.load("i32v", at, i * vectorBytes)));
      });
      const total = sums.map(({ value }) => value).reduce((left, right) => left.add(right));
      k.store("i32v", out.add(task.mul(vectorBytes)), total);
    });
  },
});

/** Bytes per second that `threads` threads read together, the best of several runs. Takes about a second. */
export async function measureMemoryBandwidth(threads?: number): Promise<number> {
  const device = await CpuDevice.create(threads === undefined ? {} : { threads });
  try {
    const numTasks = BUFFER_BYTES / TASK_BYTES;
    const buffer = device.allocate(BUFFER_BYTES, "bandwidth");
    const sums = device.allocate(numTasks * 64, "sums");
    // Memory that was never written is one page of zeros to the system, and would be read from the cache.
    device.i32(buffer).fill(1);
    const commands = device.commands();
    commands.launch(
      device.compile(readMemory, { taskBytes: TASK_BYTES }),
      { from: buffer.pointer, out: sums.pointer },
      numTasks,
    );
    let best = Number.POSITIVE_INFINITY;
    const end = performance.now() + MEASURE_MS;
    for (let run = 0; run < LEAST_RUNS || performance.now() < end; run++) {
      const start = performance.now();
      await device.run(commands);
      best = Math.min(best, performance.now() - start);
    }
    return BUFFER_BYTES / (best / 1000);
  } finally {
    await device.close();
  }
}
