/**
 * The kernel tree: what a kernel is between the builder and a back end. Plain readonly data; nothing here knows WebAssembly or C.
 * `operations.ts` says which operations exist and what they mean.
 */

import type { Operation } from "./operations.ts";

/**
 * Scalars, and vectors of the target's register width. With `lanes` = register bytes / 4: f32v and i32v hold `lanes` values,
 * i16v twice and i8v four times as many. A comparison of vectors gives an i32v whose lanes are 0 or -1.
 */
export type ValueType = "i32" | "f32" | "i32v" | "f32v" | "i16v" | "i8v";

/** The types of a whole register. */
export type VectorType = Exclude<ValueType, "i32" | "f32">;

/** How a value lies in memory. The vector forms say what is read into which lanes. */
export type LoadForm =
  | "i32"
  | "f32"
  | "u8"
  | "i8"
  | "u16"
  | "i16"
  /** A whole register. */
  | "f32v"
  | "i32v"
  | "i16v"
  | "i8v"
  /** 32 bits repeated over the register. */
  | "splat32"
  /** 64 bits repeated over the register. */
  | "splat64"
  /** `lanes` 16-bit values, widened without sign to i32v. */
  | "u16 to i32v"
  /** The same with sign. */
  | "i16 to i32v"
  /** `2 * lanes` bytes, widened with sign to i16v. */
  | "i8 to i16v";

/** How a value is written to memory. */
export type StoreForm =
  | "i32"
  | "f32"
  | "u8"
  | "u16"
  | "f32v"
  | "i32v"
  | "i16v"
  | "i8v"
  /** An i32v whose lanes are 0..65535, written as `lanes` 16-bit values. */
  | "i32v to u16";

/** What has a value. `type` is that of the value. */
export type Expression =
  | { readonly kind: "constant"; readonly type: "i32" | "f32"; readonly value: number }
  /** `bytes` is a pattern of 16 bytes, repeated over wider registers. */
  | { readonly kind: "pattern"; readonly type: VectorType; readonly bytes: readonly number[] }
  /** 0, 1, 2, ... */
  | { readonly kind: "laneIndices"; readonly type: "i32v" }
  | { readonly kind: "local"; readonly type: ValueType; readonly local: number }
  | {
      readonly kind: "operation";
      readonly type: ValueType;
      readonly operation: Operation;
      readonly args: readonly Expression[];
    }
  /** One lane of a vector, as a scalar. */
  | { readonly kind: "lane"; readonly type: "i32" | "f32"; readonly vector: Expression; readonly lane: number }
  | {
      readonly kind: "load";
      readonly type: ValueType;
      readonly form: LoadForm;
      readonly address: Expression;
      readonly offset: number;
    };

/** What is done, in order. */
export type Statement =
  | { readonly kind: "set"; readonly local: number; readonly value: Expression }
  | {
      readonly kind: "store";
      readonly form: StoreForm;
      readonly address: Expression;
      readonly offset: number;
      readonly value: Expression;
    }
  /** Adds to an i32 in memory, sequentially consistent; `local` receives the old value. */
  | { readonly kind: "atomicAdd"; readonly local: number; readonly address: Expression; readonly value: Expression }
  | {
      readonly kind: "for";
      readonly local: number;
      readonly start: Expression;
      readonly end: Expression;
      readonly step: Expression;
      readonly body: readonly Statement[];
    }
  | { readonly kind: "while"; readonly condition: Expression; readonly body: readonly Statement[] }
  | {
      readonly kind: "if";
      readonly condition: Expression;
      readonly whenTrue: readonly Statement[];
      readonly whenFalse: readonly Statement[];
    };

/** A pointer is an i32 byte address. */
export type ParameterType = "pointer" | "i32" | "f32";

/** A kernel as a tree: locals 0..3 are the four arguments (see `entryLocals`), the rest are listed in `locals`. */
export interface KernelTree {
  readonly name: string;
  readonly params: readonly { readonly name: string; readonly type: ParameterType }[];
  readonly locals: readonly ValueType[];
  readonly body: readonly Statement[];
  /** Bytes of thread-private memory that a call needs. */
  readonly scratchBytes: number;
}

/** Every kernel is called as run(params, taskBegin, taskEnd, scratch). */
export const entryLocals = { params: 0, taskBegin: 1, taskEnd: 2, scratch: 3 } as const;
