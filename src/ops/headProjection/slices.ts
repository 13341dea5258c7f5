/** Kernel parts: the parameters of the head projections, and their tasks, each a slice of the outputs of one head. */
import type { KernelBuilder, Value } from "../../kernels/index.ts";

/** Distances in bytes; `sliceLength` counts outputs. */
export const projectionParams = {
  x: "pointer",
  weight: "pointer",
  out: "pointer",
  numTokens: "i32",
  xRowBytes: "i32",
  xHeadBytes: "i32",
  weightHeadBytes: "i32",
  outRowBytes: "i32",
  outHeadBytes: "i32",
  slices: "i32",
  sliceLength: "i32",
} as const;

/** Calls the body with the head and the slice of every task. */
export function forSlices(
  k: KernelBuilder,
  p: { readonly slices: Value<"i32"> },
  body: (head: Value<"i32">, slice: Value<"i32">) => void,
): void {
  k.forTasks((task) => {
    const head = k.let(task.divU(p.slices));
    body(head, k.let(task.sub(head.mul(p.slices))));
  });
}

/** The smaller of two numbers. */
export function least(k: KernelBuilder, a: Value<"i32">, b: Value<"i32">): Value<"i32"> {
  const [first, second] = [k.let(a), k.let(b)];
  return k.let(k.select(first.lt(second), first, second));
}
