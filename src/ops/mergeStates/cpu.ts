/** The kernels that merge attention states and apply sinks, and the functions that record them. */
import { defineKernel, exp, exp2, type KernelBuilder, log, scalar, type Value } from "../../kernels/index.ts";
import { forLanes, lanesScratchBytes } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import {
  type ApplySinksArgs,
  checkApplySinks,
  checkMergeState,
  checkMergeStateInPlace,
  checkMergeStates,
  type MergeLayout,
  type MergeManyArgs,
  type MergeStateArgs,
  type MergeStateInPlaceArgs,
  type MergeStatesSpec,
} from "./contract.ts";

type KernelSpec = Omit<MergeStatesSpec, "numHeads"> & { readonly hasMask: boolean };

/** Elements of states worth fetching as one piece of work. */
const GRAIN_ELEMENTS = 2048;

/** exp or 2^x, by the base of the LSE. */
function power(k: KernelBuilder, lseBase: "e" | "2", x: Value<"f32">): Value<"f32"> {
  return scalar(k, lseBase === "e" ? exp : exp2, x);
}

/** Whether a state has any key. A NaN counts as one, so that it shows. */
function isHeld(s: Value<"f32">): Value<"i32"> {
  return s.abs().ne(Infinity);
}

/**
 * One task is one head of one row. Every s is read before `lse` is written, and v of the first state before `out`, so that both may be
 * the first state itself. The first state that has keys is written, not added: alone, it keeps its bits, the sign of a zero too.
 */
export const mergeStatesKernel = defineKernel({
  name: "mergeStates",
  params: {
    v: "pointer",
    s: "pointer",
    vOther: "pointer",
    sOther: "pointer",
    out: "pointer",
    lse: "pointer",
    mask: "pointer",
    numHeads: "i32",
    numOthers: "i32",
    vRowBytes: "i32",
    sRowBytes: "i32",
    vOtherRowBytes: "i32",
    sOtherRowBytes: "i32",
    vStateBytes: "i32",
    sStateBytes: "i32",
    outRowBytes: "i32",
    lseRowBytes: "i32",
  },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, { headDim, lseBase = "e", hasMask }: KernelSpec, p) {
    k.forTasks((task) => {
      const row = k.let(task.divU(p.numHeads));
      const head = k.let(task.sub(row.mul(p.numHeads)));
      const place = (base: Value<"i32">, rowBytes: Value<"i32">, headBytes: number): Value<"i32"> =>
        k.let(base.add(row.mul(rowBytes)).add(head.mul(headBytes)));
      const merge = (): void => {
        const [v, vOther] = [place(p.v, p.vRowBytes, headDim * 4), place(p.vOther, p.vOtherRowBytes, headDim * 4)];
        const [s, sOther] = [place(p.s, p.sRowBytes, 4), place(p.sOther, p.sOtherRowBytes, 4)];
        const out = place(p.out, p.outRowBytes, headDim * 4);
        const eachState = (body: (s: Value<"f32">, v: Value<"i32">) => void): void => {
          body(k.let(k.load("f32", s)), v);
          k.for(0, p.numOthers, 1, (i) =>
            body(k.let(k.load("f32", sOther.add(i.mul(p.sStateBytes)))), k.let(vOther.add(i.mul(p.vStateBytes)))),
          );
        };
        const largest = k.var("f32", -Infinity);
        eachState((state) => largest.set(k.select(isHeld(state), state.max(largest.value), largest.value)));
        const weightOf = (state: Value<"f32">): Value<"f32"> => power(k, lseBase, state.sub(largest.value));
        const sum = k.var("f32", 0);
        eachState((state) => k.if(isHeld(state), () => sum.set(sum.value.add(weightOf(state)))));
        const inverse = k.let(k.f32(1).div(sum.value));
        const isWritten = k.var("i32", 0);
        eachState((state, values) =>
          k.if(isHeld(state), () => {
            const weight = k.let(k.splat(weightOf(state).mul(inverse)));
            k.if(
              isWritten.value,
              () => forLanes(k, headDim, 4, ({ load, store }) => store(out, load(values).fma(weight, load(out)))),
              () => forLanes(k, headDim, 4, ({ load, store }) => store(out, load(values).mul(weight))),
            );
            isWritten.set(1);
          }),
        );
        k.if(isWritten.value.eq(0), () => forLanes(k, headDim, 4, ({ store }) => store(out, k.all("f32v", 0))));
        k.store("f32", place(p.lse, p.lseRowBytes, 4), mergedLse(k, lseBase, largest.value, sum.value));
      };
      if (hasMask) k.if(k.load("u8", p.mask.add(row)), merge);
      else merge();
    });
  },
});

/** largest + log(sum), to the bit `largest` where nothing else counts, and -infinity where nothing is. */
function mergedLse(k: KernelBuilder, lseBase: "e" | "2", largest: Value<"f32">, sum: Value<"f32">): Value<"f32"> {
  // The logarithm looks at bits and would make a number of NaN; NaN * 0 keeps it.
  const logarithm = scalar(k, log, sum).mul(lseBase === "e" ? 1 : Math.LOG2E);
  const lse = largest.add(logarithm).add(sum.mul(0));
  return k.select(sum.eq(0), k.f32(-Infinity), k.select(sum.eq(1), largest, lse));
}

/** One task is one head of one row. */
export const applySinksKernel = defineKernel({
  name: "applySinks",
  params: {
    out: "pointer",
    lse: "pointer",
    sinks: "pointer",
    numHeads: "i32",
    outRowBytes: "i32",
    lseRowBytes: "i32",
  },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, { headDim, lseBase = "e" }: Omit<MergeStatesSpec, "numHeads">, p) {
    k.forTasks((task) => {
      const row = k.let(task.divU(p.numHeads));
      const head = k.let(task.sub(row.mul(p.numHeads)));
      const out = k.let(p.out.add(row.mul(p.outRowBytes)).add(head.mul(headDim * 4)));
      const lse = k.let(k.load("f32", p.lse.add(row.mul(p.lseRowBytes)).add(head.mul(4))));
      const sink = k.load("f32", p.sinks.add(head.mul(4))).mul(lseBase === "e" ? 1 : Math.LOG2E);
      k.if(
        isHeld(lse),
        () => {
          const share = k.let(k.splat(k.f32(1).div(power(k, lseBase, sink.sub(lse)).add(1))));
          forLanes(k, headDim, 4, ({ load, store }) => store(out, load(out).mul(share)));
        },
        () => forLanes(k, headDim, 4, ({ store }) => store(out, k.all("f32v", 0))),
      );
    });
  },
});

/** (out, lse) = the merge of (vA, sA) and (vB, sB). Throws ShapeError or ArgumentError naming the argument. */
export function recordMergeState(recorder: Recorder, spec: MergeStatesSpec, args: MergeStateArgs): void {
  record(recorder, spec, checkMergeState(spec, args));
}

/** (v, s) = the merge of (v, s) and (vOther, sOther), in the rows of the mask. Throws ShapeError or ArgumentError naming the argument. */
export function recordMergeStateInPlace(recorder: Recorder, spec: MergeStatesSpec, args: MergeStateInPlaceArgs): void {
  record(recorder, spec, checkMergeStateInPlace(spec, args), args.mask?.pointer);
}

/** (out, lse) = the merge of all states of each row. Throws ShapeError or ArgumentError naming the argument. */
export function recordMergeStates(recorder: Recorder, spec: MergeStatesSpec, args: MergeManyArgs): void {
  record(recorder, spec, checkMergeStates(spec, args));
}

/** out = out / (1 + exp(sink - lse)). Throws ShapeError or ArgumentError naming the argument. */
export function recordApplySinks({ device, commands }: Recorder, spec: MergeStatesSpec, args: ApplySinksArgs): void {
  const { numRows, ...strides } = checkApplySinks(spec, args);
  if (numRows === 0) return;
  const { numHeads, headDim, lseBase = "e" } = spec;
  const [out, lse, sinks] = [args.out.pointer, args.lse.pointer, args.sinks.pointer];
  const kernel = device.compile(applySinksKernel, { headDim, lseBase });
  commands.launch(kernel, { out, lse, sinks, numHeads, ...strides }, numRows * numHeads, { grain: grainOf(headDim) });
}

function record(
  { device, commands }: Recorder,
  { numHeads, headDim, lseBase = "e" }: MergeStatesSpec,
  { numRows, ...layout }: MergeLayout,
  mask?: number,
): void {
  if (numRows === 0) return;
  const kernel = device.compile(mergeStatesKernel, { headDim, lseBase, hasMask: mask !== undefined });
  const grain = grainOf(headDim * (layout.numOthers + 1));
  commands.launch(kernel, { ...layout, numHeads, mask: mask ?? 0 }, numRows * numHeads, { grain });
}

function grainOf(elements: number): number {
  return Math.max(1, Math.floor(GRAIN_ELEMENTS / elements));
}
