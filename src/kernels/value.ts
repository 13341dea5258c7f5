/** A value inside a kernel being built: an expression of the tree with methods that make larger ones. */

import { isOperation, signatures } from "./operations.ts";
import type { Expression, ValueType, VectorType } from "./tree.ts";

/** Thrown while a kernel is built: an operation does not exist for these types, or an operand has another type. */
export class KernelTypeError extends TypeError {
  override name = "KernelTypeError";
}

/** A number stands for a constant; for vectors, for a constant in every lane. */
export type Operand<T extends ValueType> = Value<T> | number;

type MaskOf<T extends ValueType> = T extends "i32" | "f32" ? "i32" : "i32v";

/** An expression of type `T`. Methods make larger expressions and compute nothing; KernelTypeError where the type has no such operation. */
export class Value<T extends ValueType = ValueType> {
  readonly type: T;
  readonly expression: Expression;

  constructor(type: T, expression: Expression) {
    this.type = type;
    this.expression = expression;
  }

  add(other: Operand<T>): Value<T> {
    return this.apply("add", this.type, other);
  }
  sub(other: Operand<T>): Value<T> {
    return this.apply("sub", this.type, other);
  }
  mul(other: Operand<T>): Value<T> {
    return this.apply("mul", this.type, other);
  }
  div(other: Operand<T>): Value<T> {
    return this.apply("div", this.type, other);
  }
  divU(other: Operand<T>): Value<T> {
    return this.apply("divU", this.type, other);
  }
  rem(other: Operand<T>): Value<T> {
    return this.apply("rem", this.type, other);
  }
  min(other: Operand<T>): Value<T> {
    return this.apply("min", this.type, other);
  }
  max(other: Operand<T>): Value<T> {
    return this.apply("max", this.type, other);
  }
  and(other: Operand<T>): Value<T> {
    return this.apply("and", this.type, other);
  }
  or(other: Operand<T>): Value<T> {
    return this.apply("or", this.type, other);
  }
  xor(other: Operand<T>): Value<T> {
    return this.apply("xor", this.type, other);
  }
  /** Shifts take one count for all lanes. */
  shl(count: Operand<"i32">): Value<T> {
    return this.apply("shl", this.type, count);
  }
  shr(count: Operand<"i32">): Value<T> {
    return this.apply("shr", this.type, count);
  }
  shrU(count: Operand<"i32">): Value<T> {
    return this.apply("shrU", this.type, count);
  }

  neg(): Value<T> {
    return this.apply("neg", this.type);
  }
  abs(): Value<T> {
    return this.apply("abs", this.type);
  }
  sqrt(): Value<T> {
    return this.apply("sqrt", this.type);
  }
  floor(): Value<T> {
    return this.apply("floor", this.type);
  }
  nearest(): Value<T> {
    return this.apply("nearest", this.type);
  }
  /** this * factor + addend. */
  fma(factor: Operand<T>, addend: Operand<T>): Value<T> {
    return this.apply("fma", this.type, factor, addend);
  }

  eq(other: Operand<T>): Value<MaskOf<T>> {
    return this.apply("eq", this.maskType(), other);
  }
  ne(other: Operand<T>): Value<MaskOf<T>> {
    return this.apply("ne", this.maskType(), other);
  }
  lt(other: Operand<T>): Value<MaskOf<T>> {
    return this.apply("lt", this.maskType(), other);
  }
  ltU(other: Operand<T>): Value<MaskOf<T>> {
    return this.apply("ltU", this.maskType(), other);
  }
  le(other: Operand<T>): Value<MaskOf<T>> {
    return this.apply("le", this.maskType(), other);
  }
  gt(other: Operand<T>): Value<MaskOf<T>> {
    return this.apply("gt", this.maskType(), other);
  }
  ge(other: Operand<T>): Value<MaskOf<T>> {
    return this.apply("ge", this.maskType(), other);
  }

  /** i32 -> f32, i32v -> f32v: the nearest number. */
  toF32(): Value<T extends "i32" ? "f32" : "f32v"> {
    return this.apply("toF32", (this.type === "i32" ? "f32" : "f32v") as T extends "i32" ? "f32" : "f32v");
  }
  /** f32 -> i32, f32v -> i32v toward zero, saturating. */
  truncate(): Value<T extends "f32" ? "i32" : "i32v"> {
    return this.apply("truncate", (this.type === "f32" ? "i32" : "i32v") as T extends "f32" ? "i32" : "i32v");
  }
  /** The bits of an f32 as an i32. */
  asI32(): Value<"i32"> {
    return this.apply("asI32", "i32");
  }
  /** The bits of an i32 as an f32. */
  asF32(): Value<"f32"> {
    return this.apply("asF32", "f32");
  }
  /** The bits of any vector as another vector type. */
  as<V extends VectorType>(type: V): Value<V> {
    if (!isVector(this.type)) throw new KernelTypeError(`as(${type}) needs a vector, got ${this.type}`);
    const operation = `as.${type}`;
    if (!isOperation(operation)) throw new KernelTypeError(`no operation ${operation}`);
    return new Value(type, { kind: "operation", type, operation, args: [this.expression] });
  }

  /** Sums of neighbouring lanes, this vector's first, then the other's. */
  pairAdd(other: Value<T>): Value<T> {
    return this.apply("pairAdd", this.type, other);
  }
  widenLow(): Value<T extends "i8v" ? "i16v" : "i32v"> {
    return this.apply("widenLow", this.widened());
  }
  widenHigh(): Value<T extends "i8v" ? "i16v" : "i32v"> {
    return this.apply("widenHigh", this.widened());
  }
  widenLowU(): Value<T extends "i8v" ? "i16v" : "i32v"> {
    return this.apply("widenLowU", this.widened());
  }
  widenHighU(): Value<T extends "i8v" ? "i16v" : "i32v"> {
    return this.apply("widenHighU", this.widened());
  }
  /** This vector's lanes, then the other's, saturated to half the width. */
  narrow(other: Value<T>): Value<T extends "i32v" ? "i16v" : "i8v"> {
    const type = (this.type === "i32v" ? "i16v" : "i8v") as T extends "i32v" ? "i16v" : "i8v";
    return this.apply("narrow", type, other);
  }
  /** i16v: products summed in pairs, to i32v. */
  dotPairs(other: Value<T>): Value<"i32v"> {
    return this.apply("dotPairs", "i32v", other);
  }
  /** i8v: products with bytes 0..127 summed in pairs, to i16v. */
  dotPairsU7(unsigned7: Value<T>): Value<"i16v"> {
    return this.apply("dotPairsU7", "i16v", unsigned7);
  }
  /** i8v: this vector is the table of 16 bytes. */
  lookup16(index: Value<T>): Value<T> {
    return this.apply("lookup16", this.type, index);
  }
  anyTrue(): Value<"i32"> {
    return this.apply("anyTrue", "i32");
  }

  /** One lane as a scalar; `lane` is a constant below the target's lanes. */
  lane(lane: number): Value<T extends "f32v" ? "f32" : "i32"> {
    const type = (this.type === "f32v" ? "f32" : "i32") as T extends "f32v" ? "f32" : "i32";
    if (this.type !== "f32v" && this.type !== "i32v")
      throw new KernelTypeError(`lane() needs f32v or i32v, got ${this.type}`);
    if (!Number.isInteger(lane) || lane < 0)
      throw new KernelTypeError(`lane must be a whole number below the target's lanes, got ${lane}`);
    return new Value(type, { kind: "lane", type, vector: this.expression, lane });
  }

  private apply<R extends ValueType>(name: string, result: R, ...operands: Operand<ValueType>[]): Value<R> {
    return operationValue(`${this.type}.${name}`, result, [this, ...operands]);
  }
  // The two casts below state what the type parameter says; TypeScript cannot follow a conditional type through a comparison.
  private maskType(): MaskOf<T> {
    return (isVector(this.type) ? "i32v" : "i32") as MaskOf<T>;
  }
  private widened(): T extends "i8v" ? "i16v" : "i32v" {
    return (this.type === "i8v" ? "i16v" : "i32v") as T extends "i8v" ? "i16v" : "i32v";
  }
}

export const isVector = (type: ValueType): type is VectorType => type !== "i32" && type !== "f32";

/** Makes an operation's value after checking that it exists and that every operand has the type it wants. */
export function operationValue<R extends ValueType>(
  name: string,
  result: R,
  operands: readonly Operand<ValueType>[],
): Value<R> {
  if (!isOperation(name)) throw new KernelTypeError(`the kernel language has no operation ${name}`);
  const [argTypes, resultType] = signatures[name];
  if (operands.length !== argTypes.length) {
    throw new KernelTypeError(`${name} takes ${argTypes.length} operands, got ${operands.length}`);
  }
  const args = operands.map(
    (given, index) => operand(argTypes[index], given, `operand ${index} of ${name}`).expression,
  );
  if (resultType !== result) throw new KernelTypeError(`${name} gives ${resultType}, not ${result}`);
  return new Value(result, { kind: "operation", type: result, operation: name, args });
}

/** Turns a number into a constant of the wanted type; a value must have that type. `what` names it in the error. */
export function operand<T extends ValueType>(type: T, given: Operand<ValueType>, what: string): Value<T> {
  if (!(given instanceof Value)) return constant(type, given);
  if (given.type !== type) throw new KernelTypeError(`${what} must be ${type}, got ${given.type}`);
  return new Value(type, given.expression);
}

/** Integers may be given signed or unsigned, as long as their bits fit. */
export function constant<T extends ValueType>(type: T, value: number): Value<T> {
  if (type === "f32") return new Value(type, { kind: "constant", type: "f32", value: Math.fround(value) });
  if (type === "f32v") return pattern(type, type, new Float32Array(4).fill(value));
  const bits = integerBits[type as keyof typeof integerBits]; // the float types have returned
  if (!Number.isInteger(value) || value < -(2 ** (bits - 1)) || value >= 2 ** bits) {
    throw new KernelTypeError(`a constant of type ${type} must be an integer of ${bits} bits, got ${value}`);
  }
  if (type === "i32") return new Value(type, { kind: "constant", type: "i32", value: value | 0 });
  if (type === "i32v") return pattern(type, type, new Int32Array(4).fill(value));
  if (type === "i16v") return pattern(type, type, new Int16Array(8).fill(value));
  return pattern(type, "i8v", new Int8Array(16).fill(value));
}

const integerBits = { i32: 32, i32v: 32, i16v: 16, i8v: 8 } as const;

/** `vectorType` is `type`, as a comparison has shown. */
function pattern<T extends ValueType>(
  type: T,
  vectorType: VectorType,
  lanes: Float32Array | Int32Array | Int16Array | Int8Array,
): Value<T> {
  return new Value(type, { kind: "pattern", type: vectorType, bytes: [...new Uint8Array(lanes.buffer)] });
}
