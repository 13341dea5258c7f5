/** Prints a kernel tree as text, for `kvasir inspect-kernel` and for reading diffs. */

import { type Expression, entryLocals, type KernelTree, type Statement } from "./tree.ts";

export function printKernel(tree: KernelTree): string {
  const params = tree.params.map(({ name, type }) => `${name}: ${type}`).join(", ");
  const scratch = tree.scratchBytes > 0 ? `  // ${tree.scratchBytes} bytes of scratch` : "";
  return `kernel ${tree.name}(${params})${scratch}\n${block(tree.body, tree, 1)}`;
}

function block(body: readonly Statement[], tree: KernelTree, depth: number): string {
  return body.map((statement) => printStatement(statement, tree, depth)).join("");
}

function printStatement(statement: Statement, tree: KernelTree, depth: number): string {
  const indent = "  ".repeat(depth);
  switch (statement.kind) {
    case "set":
      return `${indent}${localName(statement.local)}: ${tree.locals[statement.local]} = ${text(statement.value)}\n`;
    case "store":
      return `${indent}${statement.form}[${place(statement.address, statement.offset)}] = ${text(statement.value)}\n`;
    case "atomicAdd":
      return `${indent}${localName(statement.local)} = atomicAdd([${text(statement.address)}], ${text(statement.value)})\n`;
    case "for": {
      const { local, start, end, step, body } = statement;
      const range = `${localName(local)} = ${text(start)} to ${text(end)} by ${text(step)}`;
      return `${indent}for ${range}\n${block(body, tree, depth + 1)}`;
    }
    case "while":
      return `${indent}while ${text(statement.condition)}\n${block(statement.body, tree, depth + 1)}`;
    case "if": {
      const otherwise =
        statement.whenFalse.length > 0 ? `${indent}else\n${block(statement.whenFalse, tree, depth + 1)}` : "";
      return `${indent}if ${text(statement.condition)}\n${block(statement.whenTrue, tree, depth + 1)}${otherwise}`;
    }
  }
}

function text(expression: Expression): string {
  switch (expression.kind) {
    case "constant":
      return String(expression.value);
    case "pattern":
      return `${expression.type}(${expression.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("")})`;
    case "laneIndices":
      return "laneIndices";
    case "local":
      return localName(expression.local);
    case "lane":
      return `${text(expression.vector)}.${expression.lane}`;
    case "load":
      return `${expression.form}[${place(expression.address, expression.offset)}]`;
    case "operation":
      return `${expression.operation}(${expression.args.map(text).join(", ")})`;
  }
}

const place = (address: Expression, offset: number): string =>
  offset === 0 ? text(address) : `${text(address)} + ${offset}`;

function localName(local: number): string {
  const entry = Object.entries(entryLocals).find(([, id]) => id === local);
  return entry === undefined ? `v${local}` : entry[0];
}
