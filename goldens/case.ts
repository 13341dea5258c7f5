/**
 * What a golden case is and how one is judged: the types of the case files, and the families of cases that can be run.
 * Making the inputs is in inputs.ts, comparing in compare.ts, the operations in one file per family.
 */
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { CpuDevice } from "../src/devices/index.ts";
import { type Comparison, compare, type Tolerance } from "./compare.ts";
import { type InputRecipe, makeInput, type NumberArray } from "./inputs.ts";
import { readSafetensors } from "./safetensors.ts";

/** Where a case is run: the float64 reference, or the CPU device. */
export type GoldenTarget = { readonly name: "reference" } | { readonly name: "cpu"; readonly device: CpuDevice };

/** What came of one case on one target. `worst` is the largest error as a multiple of what the tolerance allows. */
export interface GoldenOutcome {
  readonly failures: readonly string[];
  readonly worst: number;
  /** Outputs of the case that were not looked at. */
  readonly notJudged?: readonly string[];
}

/** A kind of golden case. `claims` looks at the path and the parsed JSON; the first family that claims a case runs it. */
export interface GoldenFamily {
  readonly name: string;
  claims(path: string, json: unknown): boolean;
  /** Whether the device makes no difference to a case it claims (tokenizers): run once, not once for each target. */
  isDeviceFree?(json: unknown): boolean;
  run(path: string, json: unknown, target: GoldenTarget): Promise<GoldenOutcome>;
}

interface OutputRecipe {
  readonly file: string;
  readonly key: string;
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly rows?: readonly number[];
  readonly row_dims?: number;
}

export interface CaseFile {
  readonly op: string;
  readonly params: Readonly<Record<string, unknown>>;
  readonly inputs: Readonly<Record<string, InputRecipe>>;
  readonly outputs: Readonly<Record<string, OutputRecipe>>;
  readonly tolerance: Tolerance;
}

export function isCaseFile(json: unknown): json is CaseFile {
  return typeof json === "object" && json !== null && "op" in json && "outputs" in json && "tolerance" in json;
}

/** One case of an operation, with its inputs made on demand and its expected outputs read from the file beside it. */
export class GoldenCase {
  readonly file: CaseFile;
  readonly #folder: string;
  readonly #expected = new Map<string, NumberArray>();

  constructor(path: string, file: CaseFile) {
    this.file = file;
    this.#folder = dirname(path);
  }

  /** Shape of an input. Throws if the case has no such input. */
  shape(name: string): readonly number[] {
    return this.#recipe(name).shape;
  }

  dtype(name: string): string {
    return this.#recipe(name).dtype;
  }

  has(name: string): boolean {
    return name in this.file.inputs;
  }

  input(name: string): NumberArray {
    return makeInput(this.#recipe(name));
  }

  /** An integer input (page tables, lengths). */
  integers(name: string): Int32Array {
    return Int32Array.from(this.input(name));
  }

  /** A numeric parameter; undefined where it is null or absent. */
  number(name: string): number | undefined {
    const value = this.file.params[name];
    if (value === null || value === undefined) return undefined;
    if (typeof value !== "number") throw new Error(`params.${name} must be a number, got ${JSON.stringify(value)}`);
    return value;
  }

  requiredNumber(name: string): number {
    const value = this.number(name);
    if (value === undefined) throw new Error(`params.${name} is missing`);
    return value;
  }

  /** The stored values of an expected output (only the listed rows, where the case lists rows). */
  expected(name: string): NumberArray {
    const { file } = this.file.outputs[name];
    if (!this.#expected.has(name)) {
      const tensors = readSafetensors(readFileSync(join(this.#folder, file)));
      for (const [output, recipe] of Object.entries(this.file.outputs)) {
        const tensor = recipe.file === file ? tensors.get(recipe.key) : undefined;
        if (tensor) this.#expected.set(output, tensor.values);
      }
    }
    const values = this.#expected.get(name);
    if (!values) throw new Error(`${file} has no tensor for output ${name}`);
    return values;
  }

  /**
   * Compares the full outputs `got` with every expected output; one that is missing in `got` is a failure, unless it is among `notJudged`.
   */
  judge(got: Readonly<Record<string, ArrayLike<number>>>, notJudged: readonly string[] = []): GoldenOutcome {
    const failures: string[] = [];
    let worst = 0;
    for (const [name, recipe] of Object.entries(this.file.outputs)) {
      if (notJudged.includes(name)) continue;
      if (!(name in got)) {
        failures.push(`output ${name} was not computed`);
        continue;
      }
      const result = this.#judgeOne(name, recipe, got[name]);
      worst = Math.max(worst, result.worst);
      if (result.failure) failures.push(`${name}: ${result.failure}`);
    }
    return { failures, worst, notJudged };
  }

  #judgeOne(name: string, recipe: OutputRecipe, got: ArrayLike<number>): Comparison {
    const size = recipe.shape.reduce((a, b) => a * b, 1);
    if (got.length !== size) return { worst: Infinity, failure: `has ${got.length} elements, expected ${size}` };
    const rowSize = recipe.shape.slice(recipe.row_dims ?? 1).reduce((a, b) => a * b, 1);
    return compare(got, this.expected(name), this.file.tolerance, recipe.rows && { rows: recipe.rows, rowSize });
  }

  #recipe(name: string): InputRecipe {
    const recipe = this.file.inputs[name];
    if (!recipe) throw new Error(`the case has no input ${name}`);
    return recipe;
  }
}
