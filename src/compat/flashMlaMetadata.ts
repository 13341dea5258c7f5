/** FlashMLA's scheduler metadata: here, the plans of a step, which the calls of its layers share. The calls are in flashMla.ts. */
import type { AbsorbedMla, SparseMla } from "../attention/index.ts";
import { ArgumentError } from "../tensor/index.ts";

/**
 * The plan of a step: made by the first call that it is given to, and valid for calls with equal shapes, lengths and lists, such as the
 * other layers. `release` gives its memory back.
 */
export class FlashMLASchedMeta {
  #config: string | undefined;
  readonly #attentions: (AbsorbedMla | SparseMla)[] = [];

  /** What `make` made for the first call. Throws ArgumentError if this call is of another kind. */
  attentions<A extends AbsorbedMla | SparseMla>(
    config: Readonly<Record<string, unknown>>,
    make: () => A[],
  ): readonly A[] {
    const words = JSON.stringify(config);
    if (this.#config === undefined) {
      this.#attentions.push(...make());
      this.#config = words;
    } else if (this.#config !== words) {
      throw new ArgumentError(`tileSchedulerMetadata was made for ${this.#config}, got a call with ${words}`);
    }
    return this.#attentions as unknown as readonly A[]; // the config says which of the two they are
  }

  release(): void {
    for (const attention of this.#attentions.splice(0)) attention.release();
    this.#config = undefined;
  }
}

/** An empty plan, and nothing, as the original has it. Arguments of earlier versions are not needed. */
export function getMlaMetadata(): readonly [FlashMLASchedMeta, undefined] {
  return [new FlashMLASchedMeta(), undefined];
}
