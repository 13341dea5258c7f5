/** Makes the inputs of a golden case from its recipe: inline values or generated ones, cast to the case's type, with its edits. */
import { normal, randint } from "./rng.ts";

export type NumberArray = Float64Array | Float32Array | Int32Array | Uint32Array | Uint16Array | Int8Array | Uint8Array;

type Word = number | "nan" | "inf" | "-inf";

export interface InputRecipe {
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly values?: readonly Word[];
  readonly seed?: number;
  readonly std?: number;
  readonly low?: number;
  readonly high?: number;
  readonly div?: number;
  readonly edits?: readonly { readonly index: readonly (readonly [number, number])[]; readonly value: Word }[];
  readonly nonzero?: boolean;
}

/** A binary float format by its stored mantissa bits, the exponent of its smallest normal number, and its largest value. */
interface FloatFormat {
  readonly mantissaBits: number;
  readonly minExponent: number;
  readonly max: number;
  readonly saturates: boolean;
}

const formats: Readonly<Record<string, FloatFormat>> = {
  f16: { mantissaBits: 10, minExponent: -14, max: 65504, saturates: false },
  bf16: { mantissaBits: 7, minExponent: -126, max: 3.3895313892515355e38, saturates: false },
  f8_e4m3: { mantissaBits: 3, minExponent: -6, max: 448, saturates: true },
  f8_e5m2: { mantissaBits: 2, minExponent: -14, max: 57344, saturates: true },
};

const exponentOf = new DataView(new ArrayBuffer(8));

/** Rounds a number to the nearest value of a small float format, ties to even. Float formats beyond the table are refused. */
export function roundTo(dtype: string, x: number): number {
  if (dtype === "f64") return x;
  if (dtype === "f32") return Math.fround(x);
  const format = formats[dtype];
  if (!format) throw new Error(`dtype ${dtype} is not a float type of the goldens`);
  if (Number.isNaN(x) || x === 0) return x;
  if (!Number.isFinite(x)) return format.saturates ? Math.sign(x) * format.max : x;
  exponentOf.setFloat64(0, x);
  const exponent = Math.max(((exponentOf.getUint16(0) >> 4) & 0x7ff) - 1023, format.minExponent);
  const unit = 2 ** (exponent - format.mantissaBits);
  const rounded = roundHalfEven(x / unit) * unit;
  if (Math.abs(rounded) <= format.max) return rounded;
  return Math.sign(x) * (format.saturates ? format.max : Infinity);
}

function roundHalfEven(x: number): number {
  const down = Math.floor(x);
  if (x - down !== 0.5) return Math.round(x);
  return down % 2 === 0 ? down : down + 1;
}

function isFloat(dtype: string): boolean {
  return dtype === "f64" || dtype === "f32" || dtype in formats;
}

/** Integers keep their width; f64 is a Float64Array, every other float type a Float32Array of exactly representable values. */
export function makeInput(recipe: InputRecipe): NumberArray {
  const values = cast(generate(recipe), recipe.dtype);
  for (const edit of recipe.edits ?? []) {
    const value = isFloat(recipe.dtype) ? roundTo(recipe.dtype, number(edit.value)) : number(edit.value);
    fillBox(values, recipe.shape, edit.index, value);
  }
  return recipe.nonzero ? values.map((value) => (value === 0 ? 0 : 1)) : values;
}

function generate(recipe: InputRecipe): Float64Array | Float32Array | Int32Array {
  const size = recipe.shape.reduce((a, b) => a * b, 1);
  if (recipe.values) {
    if (recipe.values.length !== size)
      throw new Error(`an input of shape [${recipe.shape}] has ${recipe.values.length} values`);
    return Float64Array.from(recipe.values, number);
  }
  if (recipe.seed === undefined) throw new Error("an input needs values or a seed");
  if (recipe.std !== undefined) return normal(recipe.seed, size, recipe.std);
  if (recipe.low === undefined || recipe.high === undefined) throw new Error("a seed needs std, or low and high");
  const integers = randint(recipe.seed, size, recipe.low, recipe.high);
  const { div } = recipe;
  return div === undefined ? integers : Float64Array.from(integers, (value) => value / div);
}

function cast(values: Float64Array | Float32Array | Int32Array, dtype: string): NumberArray {
  switch (dtype) {
    case "f64":
      return Float64Array.from(values);
    case "f32":
      return Float32Array.from(values);
    case "i32":
      return Int32Array.from(values);
    case "i8":
      return Int8Array.from(values);
    case "u8":
      return Uint8Array.from(values);
    default:
      return Float32Array.from(values, (value) => roundTo(dtype, Math.fround(value)));
  }
}

function fillBox(
  values: NumberArray,
  shape: readonly number[],
  index: readonly (readonly [number, number])[],
  value: number,
  axis = 0,
  base = 0,
): void {
  const stride = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  const [low, high] = index[axis];
  if (axis === index.length - 1) {
    values.fill(value, base + low * stride, base + high * stride);
    return;
  }
  for (let i = low; i < high; i++) fillBox(values, shape, index, value, axis + 1, base + i * stride);
}

function number(word: Word): number {
  if (typeof word === "number") return word;
  return word === "nan" ? Number.NaN : word === "inf" ? Infinity : -Infinity;
}
