/** The gated activation kernel and the function that records it. */
import { defineKernel, exp2, type KernelBuilder, sigmoid, type Value } from "../../kernels/index.ts";
import { CHUNK_ELEMENTS, rowChunkTasks } from "../elementwise/cpu.ts";
import { elementAddress, forLanes, forRowChunks, lanesScratchBytes } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import {
  type Activation,
  checkGatedActivation,
  type GatedActivationArgs,
  type GatedActivationSpec,
} from "./contract.ts";
import { scaledErfcCoefficients } from "./normalDistribution.ts";

type Elementwise = (k: KernelBuilder, x: Value<"f32v">) => Value<"f32v">;

const activations: Readonly<Record<Activation, Elementwise>> = {
  silu: (k, x) => x.mul(sigmoid(k, x)),
  // (1 + tanh u) / 2 = sigmoid(2u): where the tanh is near -1, nothing cancels.
  geluTanh: (k, x) => {
    const factor = 2 * Math.sqrt(2 / Math.PI);
    const inner = x
      .mul(x)
      .mul(factor * 0.044715)
      .add(factor);
    return x.mul(sigmoid(k, k.let(x.mul(inner))));
  },
  geluErf: (k, x) => x.mul(normalCdf(k, x)),
  relu: (_k, x) => x.max(0),
};

/** Phi(x): from the tail erfc(|x| / sqrt 2) / 2, which keeps its relative precision far out, and 1 minus the tail for positive x. */
function normalCdf(k: KernelBuilder, x: Value<"f32v">): Value<"f32v"> {
  const density = exp2(k, k.let(x.mul(x).mul(-0.5 * Math.LOG2E)));
  const t = k.let(
    k.all("f32v", 1).div(
      x
        .abs()
        .mul(Math.SQRT1_2 / 2)
        .add(1),
    ),
  );
  const s = k.let(t.add(t).sub(1));
  const [highest, ...lower] = scaledErfcCoefficients().reverse();
  let series: Value<"f32v"> = k.all("f32v", highest);
  for (const coefficient of lower) series = series.fma(s, coefficient);
  const tail = k.let(density.mul(t).mul(0.5).mul(series));
  return k.select(x.lt(0), tail, k.all("f32v", 1).sub(tail));
}

export const gatedActivationKernel = defineKernel({
  name: "gatedActivation",
  params: {
    gate: "pointer",
    up: "pointer",
    out: "pointer",
    length: "i32",
    gateStride: "i32",
    upStride: "i32",
    outStride: "i32",
  },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, { activation }: GatedActivationSpec, p) {
    const act = activations[activation];
    forRowChunks(k, p.length, CHUNK_ELEMENTS, (row, first, count) => {
      const gate = elementAddress(k, p.gate, row, p.gateStride, first);
      const up = elementAddress(k, p.up, row, p.upStride, first);
      const out = elementAddress(k, p.out, row, p.outStride, first);
      forLanes(k, count, 2, ({ load, store }) => {
        const activated = k.let(act(k, k.let(load(gate))));
        store(out, activated.mul(load(up)));
      });
    });
  },
});

/** Records act(gate) * up. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordGatedActivation(
  { device, commands }: Recorder,
  spec: GatedActivationSpec,
  args: GatedActivationArgs,
): void {
  const { numRows, length, gateStride, upStride, outStride } = checkGatedActivation(args);
  if (numRows === 0) return;
  const { numTasks, grain } = rowChunkTasks(numRows, length);
  commands.launch(
    device.compile(gatedActivationKernel, spec),
    {
      gate: args.gate.pointer,
      up: args.up.pointer,
      out: args.out.pointer,
      length,
      gateStride,
      upStride,
      outStride,
    },
    numTasks,
    { grain },
  );
}
