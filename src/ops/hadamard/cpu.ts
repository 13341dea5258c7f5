/** The Hadamard kernel: a product with the small factor, then butterflies; and the class that owns the factors on a device. */
import type { CpuDevice, DeviceBuffer } from "../../devices/index.ts";
import { defineKernel, type KernelTarget } from "../../kernels/index.ts";
import { ArgumentError } from "../../tensor/index.ts";
import { elementAddress, forLanes, lanesScratchBytes } from "../elementwise/lanes.ts";
import { checkPositive } from "../elementwise/rows.ts";
import type { Recorder } from "../recorder.ts";
import { hadamardBlocks, hadamardFactors, hadamardSigns } from "./construction.ts";
import { checkHadamard, type HadamardArgs, type HadamardSpec } from "./contract.ts";

/** Powers of two begin with a product of this order, so that butterflies are never shorter than a register of 8 lanes. */
const SMALLEST_BUTTERFLY = 8;

/** Elements worth fetching as one piece of work. */
const GRAIN_ELEMENTS = 2048;

/** One block of the transform: 2^doublings pieces of `factor` elements. */
export interface HadamardKernelSpec {
  readonly factor: number;
  readonly doublings: number;
}

function rowOffset(target: KernelTarget): number {
  return Math.max(64, lanesScratchBytes(target));
}

/**
 * One task is one row. `matrix` [factor, factor] is the small factor transposed, the norm of the whole transform included. A row is
 * worked on in scratch memory, so that `out` may be `x`.
 */
export const hadamardKernel = defineKernel({
  name: "hadamard",
  params: { x: "pointer", out: "pointer", matrix: "pointer", xStride: "i32", outStride: "i32" },
  scratchBytes: ({ factor, doublings }: HadamardKernelSpec, target) => rowOffset(target) + factor * 2 ** doublings * 4,
  build(k, { factor, doublings }, p) {
    const pieceBytes = factor * 4;
    const rowBytes = pieceBytes * 2 ** doublings;
    const work = k.let(k.scratch.add(rowOffset(k)));
    k.forTasks((row) => {
      const from = elementAddress(k, p.x, row, p.xStride);
      k.for(0, rowBytes, pieceBytes, (piece) => {
        const source = k.let(from.add(piece));
        const target = k.let(work.add(piece));
        forLanes(k, factor, 2, ({ load, store }) => {
          const sum = k.var("f32v", 0);
          k.for(0, factor, 1, (j) => {
            const column = k.let(p.matrix.add(j.mul(pieceBytes)));
            sum.set(load(column).fma(k.loadSplatF32(source.add(j.shl(2))), sum.value));
          });
          store(target, sum.value);
        });
      });
      for (let half = pieceBytes; half < rowBytes; half *= 2) {
        k.for(0, rowBytes, 2 * half, (pair) => {
          const low = k.let(work.add(pair));
          const high = k.let(low.add(half));
          forLanes(k, half / 4, 2, ({ load, store }) => {
            const [a, b] = [k.let(load(low)), k.let(load(high))];
            store(low, a.add(b));
            store(high, a.sub(b));
          });
        });
      }
      const to = elementAddress(k, p.out, row, p.outStride);
      forLanes(k, rowBytes / 4, 4, ({ load, store }) => store(to, load(work)));
    });
  },
});

/** A block of a transform: where it begins, how its kernel is specialised, and its small factor on the device. */
interface Block extends HadamardKernelSpec {
  readonly begin: number;
  readonly size: number;
  readonly matrix: DeviceBuffer;
}

/** The transform of one dimension with its small factors in device memory, until `release`. */
export class CpuHadamard {
  readonly device: CpuDevice;
  readonly spec: HadamardSpec;
  readonly #blocks: Block[] = [];

  /** Throws ArgumentError for a dimension that is no positive whole number, CapacityError when there is no room. */
  constructor(device: CpuDevice, spec: HadamardSpec) {
    checkPositive("dim", spec.dim);
    this.device = device;
    this.spec = spec;
    let begin = 0;
    try {
      for (const size of hadamardBlocks(spec.dim)) {
        this.#blocks.push({ begin, size, ...kernelSpec(size), matrix: this.#factorMatrix(size) });
        begin += size;
      }
    } catch (error) {
      this.release();
      throw error;
    }
  }

  /** Records the transform of rows. Throws ShapeError or ArgumentError naming the argument that does not fit; ArgumentError after `release`. */
  record({ commands }: Pick<Recorder, "commands">, args: HadamardArgs): void {
    const { numRows, xStride, outStride } = checkHadamard(this.spec, args);
    if (this.#blocks.length === 0) throw new ArgumentError("record: this transform was released");
    if (numRows === 0) return;
    for (const [i, { begin, size, factor, doublings, matrix }] of this.#blocks.entries()) {
      commands.launch(
        this.device.compile(hadamardKernel, { factor, doublings }),
        {
          x: args.x.pointer + begin * 4,
          out: args.out.pointer + begin * 4,
          matrix: matrix.pointer,
          xStride,
          outStride,
        },
        numRows,
        // The blocks of a row have nothing to do with each other.
        { grain: Math.max(1, Math.floor(GRAIN_ELEMENTS / size)), overlap: i + 1 < this.#blocks.length },
      );
    }
  }

  /** Gives the device memory back. */
  release(): void {
    for (const { matrix } of this.#blocks.splice(0)) this.device.free(matrix);
  }

  /** The columns of the small factor one after the other (its rows for the inverse), times the norm of the block. */
  #factorMatrix(size: number): DeviceBuffer {
    const { factor } = kernelSpec(size);
    const signs = hadamardSigns(factor);
    if (!signs) throw new Error(`hadamardFactors gave a factor of ${factor}, which has no matrix`);
    const buffer = this.device.allocate(factor * factor * 4, "hadamard factor");
    const values = this.device.f32(buffer);
    for (let i = 0; i < factor; i++) {
      for (let j = 0; j < factor; j++) {
        values[j * factor + i] = signs[this.spec.inverse ? j * factor + i : i * factor + j] / Math.sqrt(size);
      }
    }
    return buffer;
  }
}

function kernelSpec(size: number): HadamardKernelSpec {
  const factors = hadamardFactors(size);
  if (!factors) throw new Error(`hadamardBlocks gave a block of ${size}, which has no matrix`);
  if (factors.factor > 1) return factors;
  const factor = Math.min(size, SMALLEST_BUTTERFLY);
  return { factor, doublings: Math.log2(size / factor) };
}
