/** What was found wrong while a whole model was checked, and how near the rest came to its tolerance. Comparing numbers is in compare.ts. */
import type { GoldenOutcome } from "./case.ts";
import { compare, type Tolerance } from "./compare.ts";
import type { Answer, Prompt } from "./promptRuns.ts";

export class Judgement {
  readonly #failures: string[] = [];
  #worst = 0;

  get outcome(): GoldenOutcome {
    return { failures: this.#failures, worst: this.#worst };
  }

  fail(failure: string): void {
    this.#failures.push(failure);
  }

  /** Numbers within a tolerance. */
  near(label: string, got: ArrayLike<number>, want: ArrayLike<number>, tolerance: Tolerance): void {
    const { worst, failure } = compare(got, want, tolerance);
    this.#worst = Math.max(this.#worst, worst);
    if (failure !== undefined) this.fail(`${label}: ${failure}`);
  }

  /** Token ids (or texts), equal in their first `length` places. */
  same<T>(label: string, got: readonly T[], want: readonly T[], length = want.length): void {
    if (got.length !== want.length) this.fail(`${label}: ${got.length} tokens, expected ${want.length}`);
    for (let i = 0; i < length; i++) {
      if (got[i] === want[i]) continue;
      this.fail(`${label}: step ${i} is ${got[i]}, expected ${want[i]}`);
      return;
    }
  }

  /** Two runs of the same prompts whose kept logits must be the same bits. */
  sameBits(label: string, prompts: readonly Prompt[], first: readonly Answer[], second: readonly Answer[]): void {
    for (const [index, { name }] of prompts.entries()) {
      const positions = [...first[index].rows.keys()];
      if (positions.length !== second[index].rows.size) {
        this.fail(`${label}, ${name}: ${second[index].rows.size} rows of logits, expected ${positions.length}`);
      }
      const wrong = positions.filter(
        (position) => !equalBits(first[index].rows.get(position), second[index].rows.get(position)),
      );
      if (wrong.length > 0)
        this.fail(`${label}, ${name}: logits of ${wrong.length} positions are other bits, first at ${wrong[0]}`);
    }
  }
}

function equalBits(a: Float32Array | undefined, b: Float32Array | undefined): boolean {
  if (a === undefined || b === undefined || a.length !== b.length) return false;
  const x = new Int32Array(a.buffer, a.byteOffset, a.length);
  const y = new Int32Array(b.buffer, b.byteOffset, b.length);
  return x.every((word, i) => word === y[i]);
}
