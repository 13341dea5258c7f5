/**
 * What the adapters of latent attention share: a plan, and one AbsorbedMla for each variant that its runs ask for (with or without LSE, in
 * either base). And checks that name the originals' arguments.
 */
import { AbsorbedMla, type AbsorbedMlaSpec } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { AttentionBatch, ElementStorage } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, elementTypes, formatShape, ShapeError } from "../tensor/index.ts";
import { requireInt32 } from "./int32Arrays.ts";

/** What a run decides: it is part of a kernel here. */
export type MlaVariant = Pick<AbsorbedMlaSpec, "returnLse" | "lseBase" | "storage">;

/** The originals' caches hold plain elements; scales for every 128 of them come at a run, if at all. */
export interface PlannedMlaSpec extends AbsorbedMlaSpec {
  readonly storage: ElementStorage;
}

interface CurrentPlan {
  readonly spec: PlannedMlaSpec;
  readonly batch: AttentionBatch;
  readonly checkPages?: boolean;
}

/** One wrapper's plan, and the memory that goes with it. */
export class MlaPlan {
  readonly device: CpuDevice;
  readonly #variants = new Map<string, { readonly attention: AbsorbedMla; plan?: CurrentPlan }>();
  #current: CurrentPlan | undefined;

  constructor(device: CpuDevice) {
    this.device = device;
  }

  /** Keeps a plan for the runs to come. Throws ArgumentError for a spec or lengths that do not fit. */
  plan(spec: PlannedMlaSpec, batch: AttentionBatch, checkPages?: boolean): void {
    this.#current = { spec, batch, checkPages };
    try {
      this.variant({});
    } catch (error) {
      this.#current = undefined;
      throw error;
    }
  }

  /** The last plan. Throws ArgumentError if there is none, or the last one failed. */
  get current(): CurrentPlan {
    if (!this.#current) throw new ArgumentError("plan must be called before run");
    return this.#current;
  }

  /** The attention for what a run asks for, planned for the current batch. */
  variant(wanted: MlaVariant): AbsorbedMla {
    const { current } = this;
    const spec = { ...current.spec, ...wanted };
    const key = JSON.stringify(spec);
    const variant = this.#variants.get(key) ?? { attention: new AbsorbedMla(this.device, spec) };
    this.#variants.set(key, variant);
    if (variant.plan !== current) {
      variant.attention.plan(current.batch, { checkPages: current.checkPages });
      variant.plan = current;
    }
    return variant.attention;
  }

  /** Gives all device memory back. */
  release(): void {
    for (const { attention } of this.#variants.values()) attention.release();
    this.#variants.clear();
    this.#current = undefined;
  }
}

/** Throws unless the tensor has this type and shape; a word in `shape` stands for any number. */
export function requireTensor(
  name: string,
  tensor: DeviceTensor,
  type: DeviceTensor["type"],
  shape: readonly (number | string)[],
): void {
  if (tensor.type !== type) throw new ArgumentError(`${name}.type = ${tensor.type} must be ${type}`);
  const fits =
    tensor.shape.length === shape.length && shape.every((n, i) => typeof n === "string" || n === tensor.shape[i]);
  if (!fits) throw new ShapeError(`${name}.shape = ${formatShape(tensor.shape)} must be [${shape.join(", ")}]`);
}

const cacheTypes = ["f32", "f16", "bf16", "f8e4m3"] as const;

/** The type, if a cache may have it: FlashInfer's, and f32. Throws ArgumentError naming it. */
export function cacheType(name: string, type: string): (typeof cacheTypes)[number] {
  const found = cacheTypes.find((candidate) => candidate === type);
  if (found) return found;
  throw new ArgumentError(`${name} = ${type} must be one of ${cacheTypes.join(", ")}`);
}

/** Throws ArgumentError unless the type of queries, where it is given, is f32: queries and results are here. */
export function requireQueryType(name: string, type: string | undefined): void {
  if (type === undefined || type === "f32") return;
  const known = elementTypes.some((candidate) => candidate === type);
  throw new ArgumentError(
    `${name} = ${type} must be f32${known ? ": queries of other types are converted before" : ""}`,
  );
}

/** A plan's arrays, and the ones that hold them for every step where the original captures graphs. */
export interface GraphBuffers {
  readonly [name: string]: Int32Array | undefined;
}

/**
 * Copies a plan's arrays to the buffers of a wrapper with graphs, whose batch has always the same size. All but the one called `indices`
 * keep their length. Throws ArgumentError naming the buffer that is missing or the array that does not fit.
 */
export function fillGraphBuffers(
  buffers: GraphBuffers,
  arrays: Readonly<Record<string, Int32Array>>,
  indices: string,
): void {
  for (const [name, array] of Object.entries(arrays)) {
    const buffer = buffers[name];
    if (!buffer) throw new ArgumentError(`${name} must be given with useCudaGraph, as a buffer`);
    requireInt32(name, buffer);
    requireInt32(name, array);
    const fits = name === indices ? array.length <= buffer.length : array.length === buffer.length;
    if (!fits) {
      const words = name === indices ? "at most the buffer's" : "the buffer's, as the batch size is fixed:";
      throw new ArgumentError(`${name}.length = ${array.length} must be ${words} ${buffer.length}`);
    }
    buffer.set(array);
  }
}
