/**
 * Rotation tables on the device, grown to the longest position seen. Models of the longrope kind have two: one for prompts within their
 * original context and one for longer ones; the long one's rows follow the short one's, and a token's row says which it takes.
 */

import type { CpuDevice, DeviceBuffer } from "../../devices/index.ts";
import { type RopeSpec, RopeTable } from "../../ops/rope/index.ts";

/** The rotation of layers that share one `RopeSpec`. */
export class RopeRows {
  readonly spec: RopeSpec;
  readonly #device: CpuDevice;
  readonly #tables: readonly RopeTable[];
  readonly #maxPositions: number;
  #buffer: DeviceBuffer | undefined;
  #capacity = 0;

  constructor(device: CpuDevice, spec: RopeSpec, maxPositions: number) {
    this.#device = device;
    this.spec = spec;
    this.#maxPositions = maxPositions;
    const { scaling } = spec;
    this.#tables =
      scaling.type === "longrope"
        ? [new RopeTable(spec, 0), new RopeTable(spec, scaling.originalMaxPositionEmbeddings + 1)]
        : [new RopeTable(spec)];
  }

  get pointer(): number {
    return this.#buffer?.pointer ?? 0;
  }

  /** The first row of the table for prompts of this length. */
  firstRow(promptLength: number): number {
    return this.isLong(promptLength) ? this.#capacity : 0;
  }

  isLong(promptLength: number): boolean {
    const { scaling } = this.spec;
    return scaling.type === "longrope" && promptLength > scaling.originalMaxPositionEmbeddings;
  }

  /** Makes room for positions below `numPositions`. Not while commands that read the table run. */
  reserve(numPositions: number): void {
    if (numPositions <= this.#capacity) return;
    const known = this.#capacity;
    const old = this.#buffer;
    const capacity = Math.min(this.#maxPositions, Math.max(numPositions, 2 * known, 256));
    const numElements = capacity * this.spec.rotaryDim;
    this.#buffer = this.#device.allocate(numElements * this.#tables.length * 4, "rotation tables");
    this.#capacity = capacity;
    this.#tables.forEach((table, index) => {
      const rows = this.#device.f32At(this.pointer + index * numElements * 4, numElements);
      if (old !== undefined) {
        const knownElements = known * this.spec.rotaryDim;
        rows.set(this.#device.f32At(old.pointer + index * knownElements * 4, knownElements));
      }
      table.write(rows, known, capacity);
    });
    if (old !== undefined) this.#device.free(old);
  }

  free(): void {
    if (this.#buffer !== undefined) this.#device.free(this.#buffer);
    this.#buffer = undefined;
    this.#capacity = 0;
  }
}
