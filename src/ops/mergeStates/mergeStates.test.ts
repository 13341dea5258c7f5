import * as fc from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bitsOf, normals, type TestDevice, testDevices, worstError } from "../../../test/ops/testDevice.ts";
import {
  applySinks,
  type MergeStatesSpec,
  mergeState,
  mergeStateInPlace,
  mergeStates,
  recordApplySinks,
  recordMergeState,
  recordMergeStateInPlace,
  recordMergeStates,
} from "./index.ts";

const tolerance = { relative: 1e-6, absolute: 1e-6 };
const bases = ["e", "2"] as const;

/** Random states; those of the listed (row, state, head) places are empty, with NaN in v. */
function randomStates(
  { numHeads, headDim }: MergeStatesSpec,
  numRows: number,
  numStates: number,
  seed: number,
  empty: (place: number) => number | undefined = () => undefined,
) {
  const v = normals(numRows * numStates * numHeads * headDim, seed);
  const s = normals(numRows * numStates * numHeads, seed + 1).map((value) => 3 * value);
  for (let place = 0; place < s.length; place++) {
    const lse = empty(place);
    if (lse === undefined) continue;
    s[place] = lse;
    v.fill(NaN, place * headDim, (place + 1) * headDim);
  }
  return { v, s };
}

describe("merging by its definition", () => {
  const spec = { numHeads: 1, headDim: 2 };

  it("weighs states by the sums of their exponentials", () => {
    const merged = mergeState(spec, { v: [1, 2], s: [Math.log(3)] }, { v: [5, 10], s: [0] });
    expect([...merged.v]).toEqual([expect.closeTo(2, 12), expect.closeTo(4, 12)]);
    expect(merged.s[0]).toBeCloseTo(Math.log(4), 12);
    const base2 = mergeStates({ ...spec, lseBase: "2" }, 2, [1, 2, 5, 10], [Math.log2(3), 0]);
    expect([...base2.v]).toEqual([expect.closeTo(2, 12), expect.closeTo(4, 12)]);
    expect(base2.s[0]).toBeCloseTo(2, 12);
  });

  it("is attention over both sets of keys", () => {
    const [logits, values] = [normals(9, 1), normals(9, 2)];
    const state = (from: number, to: number) => {
      const weights = [...logits.subarray(from, to)].map(Math.exp);
      const sum = weights.reduce((a, b) => a + b, 0);
      return { v: [weights.reduce((v, w, t) => v + (w * values[from + t]) / sum, 0)], s: [Math.log(sum)] };
    };
    const merged = mergeState({ numHeads: 1, headDim: 1 }, state(0, 4), state(4, 9));
    const whole = state(0, 9);
    expect(merged.v[0]).toBeCloseTo(whole.v[0], 12);
    expect(merged.s[0]).toBeCloseTo(whole.s[0], 12);
  });

  it("takes either infinity for an empty state", () => {
    for (const nothing of [-Infinity, Infinity]) {
      const empty = { v: [NaN, NaN], s: [nothing] };
      expect(mergeState(spec, empty, empty)).toEqual({ v: new Float64Array(2), s: Float64Array.of(-Infinity) });
      const one = { v: [0.1, -0.2], s: [0.7] };
      expect([...mergeState(spec, empty, one).v]).toEqual(one.v);
      expect([...mergeState(spec, one, empty).s]).toEqual(one.s);
    }
  });

  it("of a sink takes its share of the softmax", () => {
    expect(applySinks(spec, [1, 2], [Math.log(3)], [0])[0]).toBeCloseTo(0.75, 12);
    expect(applySinks({ ...spec, lseBase: "2" }, [1, 2], [Math.log2(3)], [0])[1]).toBeCloseTo(1.5, 12);
    expect([...applySinks(spec, [NaN, 3], [-Infinity], [5])]).toEqual([0, 0]);
  });
});

describe.each(Object.entries(testDevices))("merging states on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  type Pair = { readonly v: ArrayLike<number>; readonly s: ArrayLike<number> };

  /** Puts states of `numRows` rows on the device, `columns` heads in a row of s. */
  const upload = ({ v, s }: Pair, spec: MergeStatesSpec, numRows: number, numStates?: number) => {
    const states = numStates === undefined ? [] : [numStates];
    return {
      v: test.f32([numRows, ...states, spec.numHeads, spec.headDim], v),
      s: test.f32([numRows, ...states, spec.numHeads], s),
    };
  };
  const uploadResult = (spec: MergeStatesSpec, numRows: number) => {
    const { v, s } = upload(randomStates(spec, numRows, 1, 99), spec, numRows);
    return { out: v, lse: s };
  };

  const merge = async (spec: MergeStatesSpec, a: Pair, b: Pair): Promise<{ v: Float32Array; s: Float32Array }> => {
    const numRows = a.s.length / spec.numHeads;
    const [A, B] = [upload(a, spec, numRows), upload(b, spec, numRows)];
    const { out, lse } = uploadResult(spec, numRows);
    await test.run((recorder) => recordMergeState(recorder, spec, { vA: A.v, sA: A.s, vB: B.v, sB: B.s, out, lse }));
    return { v: test.readF32(out), s: test.readF32(lse) };
  };

  const specs: readonly (MergeStatesSpec & { numRows: number; numStates: number })[] = [
    { numHeads: 1, headDim: 1, numRows: 1, numStates: 1 },
    { numHeads: 3, headDim: 5, numRows: 4, numStates: 2, lseBase: "2" },
    { numHeads: 5, headDim: 40, numRows: 7, numStates: 3 },
    { numHeads: 2, headDim: 127, numRows: 3, numStates: 9, lseBase: "2" },
    { numHeads: 4, headDim: 512, numRows: 2, numStates: 4 },
  ];

  it.each(specs)("equals the reference for %o, with empty states anywhere", async ({ numRows, numStates, ...spec }) => {
    const empty = (place: number): number | undefined =>
      place % 3 === 1 ? -Infinity : place % 7 === 2 ? Infinity : undefined;
    const states = randomStates(spec, numRows, numStates, 5, empty);
    const { v, s } = upload(states, spec, numRows, numStates);
    const { out, lse } = uploadResult(spec, numRows);
    await test.run((recorder) => recordMergeStates(recorder, spec, { v, s, out, lse }));
    const expected = mergeStates(spec, numStates, states.v, states.s);
    expect(worstError(test.readF32(out), expected.v, tolerance)).toBeLessThanOrEqual(1);
    const [got, want] = [test.readF32(lse), expected.s];
    const finite = [...want.keys()].filter((i) => want[i] !== -Infinity);
    expect([...got].map((value) => value === -Infinity)).toEqual([...want].map((value) => value === -Infinity));
    expect(
      worstError(
        finite.map((i) => got[i]),
        finite.map((i) => want[i]),
        tolerance,
      ),
    ).toBeLessThanOrEqual(1);
  });

  it.each(bases)("leaves the bits of a state alone among empty ones, base %s", async (lseBase) => {
    const spec: MergeStatesSpec = { numHeads: 2, headDim: 7, lseBase };
    const held = randomStates(spec, 3, 1, 1);
    held.v.set([-0, 0, 1e-40, -1e38, Infinity]);
    held.s.set([-0, 80, -1e30, 1e30]);
    for (const nothing of [-Infinity, Infinity]) {
      const empty = randomStates(spec, 3, 1, 2, () => nothing);
      for (const merged of [await merge(spec, held, empty), await merge(spec, empty, held)]) {
        expect(bitsOf(merged.v)).toEqual(bitsOf(held.v));
        expect(bitsOf(merged.s)).toEqual(bitsOf(held.s));
      }
      const nothingAtAll = await merge(
        spec,
        empty,
        randomStates(spec, 3, 1, 3, () => -Infinity),
      );
      expect(bitsOf(nothingAtAll.v)).toEqual(new Uint32Array(42));
      expect([...nothingAtAll.s]).toEqual(Array(6).fill(-Infinity));
    }
  });

  it("goes by differences, however far the sums lie from 1", async () => {
    const spec: MergeStatesSpec = { numHeads: 1, headDim: 1 };
    const at = (s: number) => merge(spec, { v: [1], s: [s] }, { v: [3], s: [s] });
    for (const s of [-1e5, -200, 0, 200, 1e5]) {
      const { v, s: lse } = await at(s);
      expect(v[0]).toBe(2);
      expect(lse[0]).toBeCloseTo(s + Math.LN2, 1 - Math.ceil(Math.log10(1 + Math.abs(s) / 1e3)));
    }
    const far = await merge(spec, { v: [1], s: [-1e5] }, { v: [3], s: [1e5] });
    expect([far.v[0], far.s[0]]).toEqual([3, 1e5]);
  });

  it("lets a NaN in an LSE show", async () => {
    const spec: MergeStatesSpec = { numHeads: 1, headDim: 5 };
    const a = { v: normals(5, 1), s: [NaN] };
    const b = { v: normals(5, 2), s: [1] };
    for (const merged of [await merge(spec, a, b), await merge(spec, b, a)]) {
      expect([...merged.v, ...merged.s].every(Number.isNaN)).toBe(true);
    }
  });

  it.each(bases)("does not depend on the order of merges by more than 1e-6, base %s", async (lseBase) => {
    const spec: MergeStatesSpec = { numHeads: 4, headDim: 6, lseBase };
    const logSum = fc.oneof(
      { weight: 4, arbitrary: fc.double({ min: -20, max: 20, noNaN: true }) },
      fc.constantFrom(-Infinity, Infinity),
    );
    const sums = fc.array(logSum, { minLength: 4, maxLength: 4 });
    await fc.assert(
      fc.asyncProperty(sums, sums, sums, fc.nat(1000), async (sA, sB, sC, seed) => {
        const [a, b, c] = [sA, sB, sC].map((s, i) => ({ v: normals(24, seed + i), s: Float32Array.from(s) }));
        const left = await merge(spec, await merge(spec, a, b), c);
        const right = await merge(spec, a, await merge(spec, b, c));
        const exact = mergeState(spec, mergeState(spec, a, b), c);
        for (let i = 0; i < 24; i++) {
          expect(Math.abs(left.v[i] - right.v[i])).toBeLessThanOrEqual(1e-6);
          expect(Math.abs(left.v[i] - exact.v[i])).toBeLessThanOrEqual(1e-6);
        }
        for (let i = 0; i < 4; i++) {
          if (left.s[i] === right.s[i] && left.s[i] === -Infinity) expect(exact.s[i]).toBe(-Infinity);
          else expect(Math.abs(left.s[i] - right.s[i])).toBeLessThanOrEqual(1e-6 * Math.max(1, Math.abs(left.s[i])));
        }
        test.clear();
      }),
      { numRuns: 30 },
    );
  });

  it("in place changes the rows of the mask and no bit of the others", async () => {
    const spec: MergeStatesSpec = { numHeads: 3, headDim: 10 };
    const [own, other] = [
      randomStates(spec, 6, 1, 1),
      randomStates(spec, 6, 1, 4, (place) => (place === 4 ? -Infinity : undefined)),
    ];
    own.s[1] = -Infinity;
    own.v.fill(NaN, 10, 20);
    for (const mask of [undefined, Uint8Array.of(1, 0, 0, 255, 1, 0)]) {
      const [state, added] = [upload(own, spec, 6), upload(other, spec, 6)];
      const onDevice = mask && test.bytes([6], "u8", mask);
      await test.run((recorder) =>
        recordMergeStateInPlace(recorder, spec, { ...state, vOther: added.v, sOther: added.s, mask: onDevice }),
      );
      const expected = { v: Float64Array.from(own.v), s: Float64Array.from(own.s) };
      mergeStateInPlace(spec, expected, other, mask);
      const [v, s] = [test.readF32(state.v), test.readF32(state.s)];
      expect(worstError(v, expected.v, tolerance)).toBeLessThanOrEqual(1);
      expect(worstError(s, expected.s, tolerance)).toBeLessThanOrEqual(1);
      for (let row = 0; row < 6; row++) {
        if (mask === undefined || mask[row] !== 0) continue;
        expect(bitsOf(v.subarray(row * 30, row * 30 + 30))).toEqual(bitsOf(own.v.subarray(row * 30, row * 30 + 30)));
        expect(bitsOf(s.subarray(row * 3, row * 3 + 3))).toEqual(bitsOf(own.s.subarray(row * 3, row * 3 + 3)));
      }
    }
  });

  it("reads and writes rows at any stride, and only as many as it is told", async () => {
    const spec: MergeStatesSpec = { numHeads: 2, headDim: 6 };
    const [a, b] = [randomStates(spec, 4, 1, 1), randomStates(spec, 4, 1, 4)];
    const B = upload(b, spec, 4);
    const wide = (values: Float32Array, length: number, stride: number) => {
      const spread = new Float32Array(4 * stride).fill(NaN);
      for (let row = 0; row < 4; row++) spread.set(values.subarray(row * length, (row + 1) * length), row * stride);
      return { ...test.f32([4, length], spread), rowStride: stride };
    };
    const [vA, sA] = [wide(a.v, 12, 17), wide(a.s, 2, 3)];
    await test.run((recorder) =>
      recordMergeState(recorder, spec, { vA, sA, vB: B.v, sB: B.s, out: vA, lse: sA, numRows: 3 }),
    );
    const expected = mergeState(spec, a, b);
    const [v, s] = [test.readF32(vA), test.readF32(sA)];
    for (let row = 0; row < 4; row++) {
      const [wantV, wantS] = row < 3 ? [expected.v, expected.s] : [a.v, a.s];
      const [vRow, sRow] = [v.subarray(row * 17, row * 17 + 17), s.subarray(row * 3, row * 3 + 3)];
      expect(worstError(vRow.subarray(0, 12), wantV.subarray(row * 12, row * 12 + 12), tolerance)).toBeLessThanOrEqual(
        1,
      );
      expect(worstError(sRow.subarray(0, 2), wantS.subarray(row * 2, row * 2 + 2), tolerance)).toBeLessThanOrEqual(1);
      expect([...vRow.subarray(12), ...sRow.subarray(2)].every(Number.isNaN)).toBe(true);
    }
  });

  it.each(bases)("applies sinks to out and leaves lse, base %s", async (lseBase) => {
    const spec: MergeStatesSpec = { numHeads: 5, headDim: 9, lseBase };
    const state = randomStates(spec, 4, 1, 7, (place) =>
      place === 3 ? -Infinity : place === 8 ? Infinity : undefined,
    );
    const sinks = Float32Array.of(0.5, -Infinity, 200, -200, 2);
    const { v: out, s: lse } = upload(state, spec, 4);
    await test.run((recorder) => recordApplySinks(recorder, spec, { out, lse, sinks: test.f32([5], sinks) }));
    expect(worstError(test.readF32(out), applySinks(spec, state.v, state.s, sinks), tolerance)).toBeLessThanOrEqual(1);
    expect(bitsOf(test.readF32(lse))).toEqual(bitsOf(state.s));
  });

  it("names what is wrong", async () => {
    const spec: MergeStatesSpec = { numHeads: 2, headDim: 3 };
    const states = randomStates(spec, 4, 1, 1);
    const [a, b] = [upload(states, spec, 4), upload(states, spec, 4)];
    const { out, lse } = uploadResult(spec, 4);
    const args = { vA: a.v, sA: a.s, vB: b.v, sB: b.s, out, lse };
    const many = { v: test.f32([2, 2, 2, 3], states.v), s: test.f32([2, 2, 2], states.s), out, lse };
    const fails = (record: Parameters<TestDevice["run"]>[0], message: string): Promise<void> =>
      expect(test.run(record)).rejects.toThrow(message);
    await fails((r) => recordMergeState(r, { ...spec, headDim: 4 }, args), "vA must have rows of 8 elements");
    await fails((r) => recordMergeState(r, { ...spec, headDim: 0 }, args), "headDim must be a whole number");
    await fails((r) => recordMergeState(r, spec, { ...args, sB: a.v }), "sB must have rows of 2 elements");
    await fails((r) => recordMergeState(r, spec, { ...args, out: b.v }), "out must not be vB");
    await fails((r) => recordMergeState(r, spec, { ...args, numRows: 5 }), "vA must have at least 5 rows");
    await fails((r) => recordMergeStates(r, spec, { ...many, out: many.v }), "out must not be v");
    await fails((r) => recordMergeStates(r, spec, { ...many, s: lse }), "s must have rows of 4 elements");
    const mask = test.f32([4], new Float32Array(4));
    const inPlace = { v: a.v, s: a.s, vOther: b.v, sOther: b.s };
    await fails((r) => recordMergeStateInPlace(r, spec, { ...inPlace, mask }), "mask must be of type u8, got f32");
    const short = test.bytes([3], "u8", new Uint8Array(3));
    await fails(
      (r) => recordMergeStateInPlace(r, spec, { ...inPlace, mask: short }),
      "mask must have shape [4] or more",
    );
    const sinks = test.f32([3], new Float32Array(3));
    await fails((r) => recordApplySinks(r, spec, { out, lse, sinks }), "sinks must have shape [2], got [3]");
    // @ts-expect-error a base that is none
    await fails((r) => recordMergeState(r, { ...spec, lseBase: "10" }, args), 'lseBase must be "e" or "2", got 10');
  });
});
