/** Writes a kernel tree as the body of one WebAssembly function. */

import type { Operation } from "../operations.ts";
import { type Expression, entryLocals, type KernelTree, type Statement } from "../tree.ts";
import { ByteWriter } from "./bytes.ts";
import type { WasmFeatures } from "./features.ts";
import { type Instruction, loads, opcode, plainOperations, stores, valueTypes } from "./opcodes.ts";

const emptyBlock = 0x40;

/** The same table for an operation that may not be in it. */
const instructionOf: Partial<Record<Operation, Instruction>> = plainOperations;

const evenWords = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27];
const oddWords = evenWords.map((byte) => byte + 4);
const evenHalves = [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29];
const oddHalves = evenHalves.map((byte) => byte + 2);

/** The function's local declarations and code, ready to be put into a code section. */
export function emitFunction(tree: KernelTree, features: WasmFeatures): ByteWriter {
  return new FunctionEmitter(tree, features).emit();
}

class FunctionEmitter {
  private readonly out = new ByteWriter();
  private readonly tree: KernelTree;
  private readonly features: WasmFeatures;
  /** Locals of our own, after the tree's: to use an operand twice. */
  private readonly temporaries: number[] = [];
  private readonly constants = new Map<string, { readonly local: number; readonly bytes: readonly number[] }>();

  constructor(tree: KernelTree, features: WasmFeatures) {
    this.tree = tree;
    this.features = features;
  }

  emit(): ByteWriter {
    for (const statement of this.tree.body) this.statement(statement);
    this.out.byte(opcode.end);
    const numArguments = Object.keys(entryLocals).length;
    const types = [...this.tree.locals.slice(numArguments).map((type) => valueTypes[type]), ...this.temporaries];
    const runs: { type: number; count: number }[] = [];
    for (const type of types) {
      const last = runs.at(-1);
      if (last?.type === type) last.count++;
      else runs.push({ type, count: 1 });
    }
    const body = new ByteWriter().unsigned(runs.length);
    for (const { type, count } of runs) body.unsigned(count).byte(type);
    for (const { local, bytes } of this.constants.values()) {
      this.instruction(opcode.v128Const, body);
      body.bytes(bytes).byte(opcode.localSet).unsigned(local);
    }
    return body.bytes(this.out.finish());
  }

  private statement(statement: Statement): void {
    switch (statement.kind) {
      case "set":
        this.expression(statement.value);
        this.out.byte(opcode.localSet).unsigned(statement.local);
        return;
      case "store":
        this.store(statement);
        return;
      case "atomicAdd":
        this.expression(statement.address);
        this.expression(statement.value);
        this.instruction(opcode.atomicAddI32);
        this.out.unsigned(2).unsigned(0).byte(opcode.localSet).unsigned(statement.local);
        return;
      case "for":
        this.loop(statement);
        return;
      case "while":
        // block { loop { if !condition leave; body; again } }
        this.out.bytes([opcode.block, emptyBlock, opcode.loop, emptyBlock]);
        this.expression(statement.condition);
        this.out.bytes([opcode.i32Eqz, opcode.brIf, 1]);
        for (const inner of statement.body) this.statement(inner);
        this.out.bytes([opcode.br, 0, opcode.end, opcode.end]);
        return;
      case "if":
        this.expression(statement.condition);
        this.out.bytes([opcode.if, emptyBlock]);
        for (const inner of statement.whenTrue) this.statement(inner);
        if (statement.whenFalse.length > 0) {
          this.out.byte(opcode.else);
          for (const inner of statement.whenFalse) this.statement(inner);
        }
        this.out.byte(opcode.end);
    }
  }

  /** The test sits at the bottom, so that an iteration has one branch. */
  private loop({ local, start, end, step, body }: Extract<Statement, { kind: "for" }>): void {
    const { out } = this;
    const lessThan = plainOperations["i32.lt"];
    this.expression(start);
    out.byte(opcode.localTee).unsigned(local);
    this.expression(end);
    out.bytes([lessThan, opcode.if, emptyBlock, opcode.loop, emptyBlock]);
    for (const inner of body) this.statement(inner);
    out.byte(opcode.localGet).unsigned(local);
    this.expression(step);
    out.byte(plainOperations["i32.add"]).byte(opcode.localTee).unsigned(local);
    this.expression(end);
    out.bytes([lessThan, opcode.brIf, 0, opcode.end, opcode.end]);
  }

  private store({ form, address, offset, value }: Extract<Statement, { kind: "store" }>): void {
    this.expression(address);
    if (form === "i32v to u16") {
      const vector = this.keep(value, valueTypes.i32v);
      this.get(vector, vector);
      this.instruction(opcode.narrowU16);
      this.instruction(opcode.storeLane64);
      this.out.unsigned(0).unsigned(offset).byte(0);
      return;
    }
    this.expression(value);
    this.instruction(stores[form]);
    this.out.unsigned(0).unsigned(offset);
  }

  private expression(expression: Expression): void {
    const { out } = this;
    switch (expression.kind) {
      case "constant":
        if (expression.type === "i32") out.byte(opcode.i32Const).signed(expression.value);
        else out.byte(opcode.f32Const).float32(expression.value);
        return;
      case "pattern":
        this.vectorConstant(expression.bytes);
        return;
      case "laneIndices":
        this.vectorConstant([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        return;
      case "local":
        out.byte(opcode.localGet).unsigned(expression.local);
        return;
      case "lane":
        this.expression(expression.vector);
        this.instruction(expression.type === "f32" ? opcode.f32x4ExtractLane : opcode.i32x4ExtractLane);
        out.byte(expression.lane);
        return;
      case "load":
        this.expression(expression.address);
        this.instruction(loads[expression.form]);
        // The alignment hint 0 promises nothing, which is always true.
        out.unsigned(0).unsigned(expression.offset);
        return;
      case "operation":
        this.operation(expression.operation, expression.args);
    }
  }

  private operation(operation: Operation, args: readonly Expression[]): void {
    const plain = instructionOf[operation];
    if (plain !== undefined) {
      for (const arg of args) this.expression(arg);
      this.instruction(plain);
      return;
    }
    const [a, b, c] = args;
    switch (operation) {
      case "as.f32v":
      case "as.i32v":
      case "as.i16v":
      case "as.i8v":
        this.expression(a);
        return;
      case "f32.min":
      case "f32.max": {
        const [x, y] = [this.keep(a, valueTypes.f32), this.keep(b, valueTypes.f32)];
        this.get(y);
        this.get(x);
        if (operation === "f32.min") this.get(y, x);
        else this.get(x, y);
        this.out.byte(plainOperations["f32.lt"]);
        this.instruction(opcode.select);
        return;
      }
      case "i32.select":
      case "f32.select":
        this.expression(b);
        this.expression(c);
        this.expression(a);
        this.instruction(opcode.select);
        return;
      case "f32v.select":
      case "i32v.select":
        this.expression(b);
        this.expression(c);
        this.expression(a);
        this.instruction(this.features.relaxedSimd ? opcode.relaxedLaneselect : opcode.bitselect);
        return;
      case "f32v.fma":
        this.expression(a);
        this.expression(b);
        if (!this.features.relaxedSimd) this.instruction(opcode.f32x4Mul);
        this.expression(c);
        this.instruction(this.features.relaxedSimd ? opcode.relaxedMadd : opcode.f32x4Add);
        return;
      case "f32v.pairAdd":
      case "i32v.pairAdd": {
        const [x, y] = [this.keep(a, valueTypes.i32v), this.keep(b, valueTypes.i32v)];
        this.shuffle(x, y, evenWords);
        this.shuffle(x, y, oddWords);
        this.instruction(operation === "f32v.pairAdd" ? opcode.f32x4Add : plainOperations["i32v.add"]);
        return;
      }
      case "i8v.lookup16":
        this.expression(a);
        this.expression(b);
        this.instruction(this.features.relaxedSimd ? opcode.relaxedSwizzle : opcode.swizzle);
        return;
      case "i8v.dotPairsU7":
        this.dotPairsU7(a, b);
        return;
      default:
        throw new Error(`the WebAssembly back end has no instruction for ${operation}`);
    }
  }

  private dotPairsU7(a: Expression, b: Expression): void {
    if (this.features.relaxedSimd) {
      this.expression(a);
      this.expression(b);
      this.instruction(opcode.relaxedDotPairs);
      return;
    }
    const [x, y] = [this.keep(a, valueTypes.i8v), this.keep(b, valueTypes.i8v)];
    this.get(x, y);
    this.instruction(opcode.extmulLowI8);
    const low = this.keepTop(valueTypes.i8v);
    this.get(x, y);
    this.instruction(opcode.extmulHighI8);
    const high = this.keepTop(valueTypes.i8v);
    this.shuffle(low, high, evenHalves);
    this.shuffle(low, high, oddHalves);
    this.instruction(opcode.i16x8Add);
  }

  /** Puts an operand into a local, so that it can be used twice; one that is a local already stays where it is. */
  private keep(expression: Expression, type: number): number {
    if (expression.kind === "local") return expression.local;
    this.expression(expression);
    return this.keepTop(type);
  }
  private keepTop(type: number): number {
    const local = this.tree.locals.length + this.temporaries.push(type) - 1;
    this.out.byte(opcode.localSet).unsigned(local);
    return local;
  }
  private get(...locals: number[]): void {
    for (const local of locals) this.out.byte(opcode.localGet).unsigned(local);
  }
  private shuffle(a: number, b: number, bytes: readonly number[]): void {
    this.get(a, b);
    this.instruction(opcode.shuffle);
    this.out.bytes(bytes);
  }
  /** Vector constants live in locals, set once on entry: V8 would build each one anew, in three instructions, wherever it is used. */
  private vectorConstant(bytes: readonly number[]): void {
    const key = bytes.join();
    let constant = this.constants.get(key);
    if (constant === undefined) {
      constant = { local: this.tree.locals.length + this.temporaries.push(valueTypes.i8v) - 1, bytes };
      this.constants.set(key, constant);
    }
    this.get(constant.local);
  }
  private instruction(instruction: Instruction, out = this.out): void {
    if (typeof instruction === "number") out.byte(instruction);
    else out.byte(instruction[0]).unsigned(instruction[1]);
  }
}
