/** FlashMLA's scheduler metadata: here, the plans of a step, which the calls of its layers share. The calls are in flashMla.ts. */
import {
  AbsorbedMla,
  type AbsorbedMlaSpec,
  SparseMla,
  type SparseMlaLists,
  type SparseMlaSpec,
} from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { AttentionBatch } from "../ops/attention/index.ts";
import { ArgumentError } from "../tensor/index.ts";

/** What has to be equal in all calls that share a plan. */
type CallConfig = Readonly<Record<string, unknown>>;

/**
 * The plan of a step: made by the first call that it is given to, and valid for calls with equal shapes, lengths and lists, such as the
 * other layers. `release` gives its memory back.
 */
export class FlashMLASchedMeta {
  #config: string | undefined;
  readonly #dense: AbsorbedMla[] = [];
  readonly #sparse: SparseMla[] = [];

  /** The attention over page tables, planned by the first call. Throws ArgumentError if this one is of another kind. */
  dense(config: CallConfig, device: CpuDevice, spec: AbsorbedMlaSpec, step: AttentionBatch): AbsorbedMla {
    this.#planOnce(config, () => {
      const attention = new AbsorbedMla(device, spec);
      this.#dense.push(attention);
      attention.plan(step);
    });
    return this.#dense[0];
  }

  /** An attention for each of the lists, planned by the first call. Throws ArgumentError if this one is of another kind. */
  sparse(
    config: CallConfig,
    device: CpuDevice,
    sources: readonly { readonly spec: SparseMlaSpec; readonly lists: SparseMlaLists }[],
  ): readonly SparseMla[] {
    this.#planOnce(config, () => {
      for (const { spec, lists } of sources) {
        const attention = new SparseMla(device, spec);
        this.#sparse.push(attention);
        attention.plan(lists);
      }
    });
    return this.#sparse;
  }

  /** Gives all device memory back; the next call plans anew. */
  release(): void {
    for (const attention of [...this.#dense.splice(0), ...this.#sparse.splice(0)]) attention.release();
    this.#config = undefined;
  }

  #planOnce(config: CallConfig, plan: () => void): void {
    const words = JSON.stringify(config);
    if (this.#config === words) return;
    if (this.#config !== undefined) {
      throw new ArgumentError(`tileSchedulerMetadata was made for ${this.#config}, got a call with ${words}`);
    }
    try {
      plan();
    } catch (error) {
      this.release();
      throw error;
    }
    this.#config = words;
  }
}

/** An empty plan, and nothing, as the original has it. Arguments of earlier versions are not needed. */
export function getMlaMetadata(): readonly [FlashMLASchedMeta, undefined] {
  return [new FlashMLASchedMeta(), undefined];
}
