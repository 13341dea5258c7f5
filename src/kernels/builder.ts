/**
 * The builder functions of the kernel language: a kernel's author calls them once for a spec and a target, and they leave a tree.
 *
 *     defineKernel({
 *       name: "addArrays",
 *       params: { a: "pointer", b: "pointer", out: "pointer" },
 *       build(k, spec: { chunk: number }, p) {
 *         k.forTasks((task) => {
 *           const offset = k.let(task.mul(spec.chunk * 4));
 *           k.for(0, spec.chunk * 4, k.lanes * 4, (i) => {
 *             const at = k.let(offset.add(i));
 *             k.store("f32v", p.out.add(at), k.load("f32v", p.a.add(at)).add(k.load("f32v", p.b.add(at))));
 *           });
 *         });
 *       },
 *     });
 *
 * A value used twice is computed twice unless it went through `let`: trees, not graphs, so that what a back end emits is what
 * the author wrote. Loops over JavaScript numbers unroll, `k.for` makes a loop. Addresses are byte addresses (i32).
 */

import {
  type Expression,
  entryLocals,
  type KernelTree,
  type LoadForm,
  type ParameterType,
  type Statement,
  type StoreForm,
  type ValueType,
} from "./tree.ts";
import { constant, KernelTypeError, type Operand, operand, operationValue, Value } from "./value.ts";

/** What a kernel may know of the machine it is built for. */
export interface KernelTarget {
  /** 32-bit lanes of a vector register: 4 for WebAssembly. */
  readonly lanes: number;
}

/** A local of a kernel that can be set again: `value` reads what it holds at that point. */
export interface Variable<T extends ValueType> {
  readonly value: Value<T>;
  set(value: Operand<T>): void;
}

const loadTypes = {
  i32: "i32",
  f32: "f32",
  u8: "i32",
  i8: "i32",
  u16: "i32",
  i16: "i32",
  f32v: "f32v",
  i32v: "i32v",
  i16v: "i16v",
  i8v: "i8v",
  splat32: "i8v",
  splat64: "i16v",
  "u16 to i32v": "i32v",
  "i16 to i32v": "i32v",
  "i8 to i16v": "i16v",
} as const satisfies Record<LoadForm, ValueType>;

const storeTypes = {
  i32: "i32",
  f32: "f32",
  u8: "i32",
  u16: "i32",
  f32v: "f32v",
  i32v: "i32v",
  i16v: "i16v",
  i8v: "i8v",
  "i32v to u16": "i32v",
} as const satisfies Record<StoreForm, ValueType>;

/** A kernel's parameters by name, in the order of their words. */
export type ParameterTypes = Readonly<Record<string, ParameterType>>;
/** What `build` gets for them: pointers are i32 values. */
export type ParameterValues<P extends ParameterTypes> = {
  readonly [N in keyof P]: Value<P[N] extends "f32" ? "f32" : "i32">;
};

/** A kernel for every spec: what `compile` turns into code. `scratchBytes` is thread-private memory, 64-byte aligned. */
export interface KernelDefinition<Spec, P extends ParameterTypes = ParameterTypes> {
  readonly name: string;
  readonly params: P;
  scratchBytes?(spec: Spec, target: KernelTarget): number;
  build(k: KernelBuilder, spec: Spec, params: ParameterValues<P>): void;
}

/** Identity, for inference of the spec and parameter types. */
export function defineKernel<Spec, const P extends ParameterTypes>(
  definition: KernelDefinition<Spec, P>,
): KernelDefinition<Spec, P> {
  return definition;
}

/** Collects the statements of one kernel while its `build` runs. Throws KernelTypeError for operands of the wrong type. */
export class KernelBuilder implements KernelTarget {
  readonly lanes: number;
  /** Address of this thread's scratch memory. */
  readonly scratch = local("i32", entryLocals.scratch);
  private readonly localTypes: ValueType[] = ["i32", "i32", "i32", "i32"];
  private block: Statement[] = [];

  constructor(target: KernelTarget) {
    this.lanes = target.lanes;
  }

  /** Computes a value once and names it. */
  let<T extends ValueType>(value: Value<T>): Value<T> {
    return this.variable(value.type, value).value;
  }

  /** A local that can be set again, first to `initial`. */
  var<T extends ValueType>(type: T, initial: Operand<T>): Variable<T> {
    return this.variable(type, initial);
  }

  i32(value: number): Value<"i32"> {
    return constant("i32", value);
  }
  f32(value: number): Value<"f32"> {
    return constant("f32", value);
  }
  /** The same constant in every lane. */
  all<T extends "f32v" | "i32v" | "i16v" | "i8v">(type: T, value: number): Value<T> {
    return constant(type, value);
  }
  /** 16 bytes, repeated over wider registers. */
  bytes(pattern: readonly number[]): Value<"i8v"> {
    if (pattern.length !== 16) throw new KernelTypeError(`bytes needs 16 bytes, got ${pattern.length}`);
    return new Value("i8v", { kind: "pattern", type: "i8v", bytes: pattern.map((byte) => byte & 255) });
  }
  /** 0, 1, 2, ... */
  laneIndices(): Value<"i32v"> {
    return new Value("i32v", { kind: "laneIndices", type: "i32v" });
  }

  /** A scalar in every lane: f32 -> f32v, i32 -> i32v. */
  splat<T extends "f32" | "i32">(value: Value<T>): Value<T extends "f32" ? "f32v" : "i32v"> {
    const type = (value.type === "f32" ? "f32v" : "i32v") as T extends "f32" ? "f32v" : "i32v";
    return operationValue(`${type}.splat`, type, [value]);
  }
  splatI16(value: Value<"i32">): Value<"i16v"> {
    return operationValue("i16v.splat", "i16v", [value]);
  }

  select<T extends ValueType>(
    condition: Value<T extends "i32" | "f32" ? "i32" : "i32v">,
    then: Value<T>,
    otherwise: Operand<T>,
  ): Value<T> {
    return operationValue(`${then.type}.select`, then.type, [condition, then, otherwise]);
  }

  load<F extends LoadForm>(form: F, address: Value<"i32">, offset = 0): Value<(typeof loadTypes)[F]> {
    const type = loadTypes[form];
    return new Value(type, { kind: "load", type, form, ...place(address, offset) });
  }
  /** One f32 in every lane. */
  loadSplatF32(address: Value<"i32">, offset = 0): Value<"f32v"> {
    return this.load("splat32", address, offset).as("f32v");
  }
  store<F extends StoreForm>(form: F, address: Value<"i32">, value: Operand<(typeof storeTypes)[F]>, offset = 0): void {
    const { expression } = operand(storeTypes[form], value, `the value of store ${form}`);
    this.block.push({ kind: "store", form, ...place(address, offset), value: expression });
  }
  /** Adds to an i32 shared between threads and gives the value before. */
  atomicAdd(address: Value<"i32">, value: Operand<"i32">): Value<"i32"> {
    const old = this.newLocal("i32");
    this.block.push({
      kind: "atomicAdd",
      local: old,
      address: operand("i32", address, "the address of atomicAdd").expression,
      value: operand("i32", value, "the value of atomicAdd").expression,
    });
    return local("i32", old);
  }

  /**
   * for (i = start; i < end; i += step), signed; `step` is positive and `end + step` an i32. All three are read once, before the loop.
   */
  for(start: Operand<"i32">, end: Operand<"i32">, step: Operand<"i32">, body: (index: Value<"i32">) => void): void {
    if (typeof step === "number" && step <= 0)
      throw new KernelTypeError(`the step of for must be positive, got ${step}`);
    const index = this.newLocal("i32");
    const fixed = (given: Operand<"i32">, what: string): Value<"i32"> => {
      const value = operand("i32", given, what);
      return given instanceof Value ? this.let(value) : value;
    };
    this.block.push({
      kind: "for",
      local: index,
      start: operand("i32", start, "the start of for").expression,
      end: fixed(end, "the end of for").expression,
      step: fixed(step, "the step of for").expression,
      body: this.nested(() => body(local("i32", index))),
    });
  }
  /** The tasks that this call was given. */
  forTasks(body: (task: Value<"i32">) => void): void {
    this.for(local("i32", entryLocals.taskBegin), local("i32", entryLocals.taskEnd), 1, body);
  }
  while(condition: Value<"i32">, body: () => void): void {
    const { expression } = operand("i32", condition, "the condition of while");
    this.block.push({ kind: "while", condition: expression, body: this.nested(body) });
  }
  if(condition: Value<"i32">, then: () => void, otherwise?: () => void): void {
    this.block.push({
      kind: "if",
      condition: operand("i32", condition, "the condition of if").expression,
      whenTrue: this.nested(then),
      whenFalse: otherwise === undefined ? [] : this.nested(otherwise),
    });
  }

  /** Sum of the lanes in a fixed order: neighbours are added until one sum is left. */
  sumLanes(vector: Value<"f32v">): Value<"f32"> {
    let sums = this.let(vector);
    for (let width = this.lanes; width > 1; width /= 2) sums = this.let(sums.pairAdd(sums));
    return sums.lane(0);
  }
  maxLanes(vector: Value<"f32v">): Value<"f32"> {
    const named = this.let(vector);
    let largest: Value<"f32"> = named.lane(0);
    for (let lane = 1; lane < this.lanes; lane++) largest = this.let(largest.max(named.lane(lane)));
    return largest;
  }

  private variable<T extends ValueType>(type: T, initial: Operand<T>): Variable<T> {
    const id = this.newLocal(type);
    const set = (value: Operand<T>): void => {
      const { expression } = operand(type, value, `the value of a variable of type ${type}`);
      this.block.push({ kind: "set", local: id, value: expression });
    };
    set(initial);
    return { value: local(type, id), set };
  }
  private newLocal(type: ValueType): number {
    return this.localTypes.push(type) - 1;
  }
  private nested(body: () => void): Statement[] {
    const outer = this.block;
    this.block = [];
    body();
    const inner = this.block;
    this.block = outer;
    return inner;
  }

  /** Builds the tree of a definition for one spec. */
  static tree<Spec, P extends ParameterTypes>(
    definition: KernelDefinition<Spec, P>,
    spec: Spec,
    target: KernelTarget,
  ): KernelTree {
    const k = new KernelBuilder(target);
    const params = Object.entries(definition.params).map(([name, type]) => ({ name, type }));
    const values = Object.fromEntries(
      params.map(({ name, type }, index) => {
        const form = type === "f32" ? "f32" : "i32";
        return [name, k.let(k.load(form, local("i32", entryLocals.params), index * 4))];
      }),
    ) as ParameterValues<P>; // fromEntries forgets the names that P states
    definition.build(k, spec, values);
    return {
      name: definition.name,
      params,
      locals: k.localTypes,
      body: k.block,
      scratchBytes: definition.scratchBytes?.(spec, target) ?? 0,
    };
  }
}

function local<T extends ValueType>(type: T, id: number): Value<T> {
  return new Value(type, { kind: "local", type, local: id });
}

function place(address: Value<"i32">, offset: number): { readonly address: Expression; readonly offset: number } {
  if (!Number.isInteger(offset) || offset < 0)
    throw new KernelTypeError(`offset must be a number of bytes, got ${offset}`);
  return { address: operand("i32", address, "an address").expression, offset };
}
