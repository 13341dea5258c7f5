/** Results as text for a terminal and as Markdown for docs/benchmarks.md. */

import { availableParallelism, cpus } from "node:os";
import type { BenchResult, Cell, Table } from "./result.ts";

/** Three significant digits, thousands with commas. */
export function formatFigure(value: number): string {
  if (!Number.isFinite(value)) return "-";
  const magnitude = Math.abs(value);
  if (magnitude >= 999.5) return Math.round(value).toLocaleString("en-US");
  if (magnitude === 0 || Number.isInteger(value)) return `${value}`;
  if (magnitude < 1e-4) return value.toExponential(1);
  return value.toFixed(Math.min(4, Math.max(0, 2 - Math.floor(Math.log10(magnitude) + 1e-9))));
}

export function formatCell(cell: Cell): string {
  if (cell === null) return "";
  if (typeof cell === "string") return cell;
  if (typeof cell === "number") return formatFigure(cell);
  return `${formatFigure(cell.median)} (${formatFigure(cell.min)} to ${formatFigure(cell.max)})`;
}

/** The machine and the program that measured, in one line. */
export function describeMachine(): string {
  const { node, v8 } = process.versions;
  const model = cpus()[0]?.model ?? "unknown processor";
  return `${model}, ${availableParallelism()} threads, ${process.platform} ${process.arch}, Node ${node}, V8 ${v8}`;
}

export function renderText({ about, tables, remarks }: BenchResult): string {
  const parts = [about, describeMachine(), ...tables.map(textTable), ...remarks];
  return parts.join("\n\n");
}

/** `level`: number signs before the titles of the tables. */
export function renderMarkdown({ about, tables, remarks }: BenchResult, level = 3): string {
  const titled = tables.map((table) => `${"#".repeat(level)} ${table.title}\n\n${markdownTable(table)}`);
  const list = remarks.map((remark) => `- ${remark}`).join("\n");
  return [about, ...titled, ...(list === "" ? [] : [list])].join("\n\n");
}

function textTable({ title, columns, rows }: Table): string {
  const cells = [columns, ...rows.map((row) => row.map(formatCell))];
  const widths = columns.map((_, column) => Math.max(...cells.map((row) => row[column].length)));
  const right = columns.map((_, column) => isFigures(rows, column));
  const lines = cells.map((row) =>
    row
      .map((cell, column) => (right[column] ? cell.padStart(widths[column]) : cell.padEnd(widths[column])))
      .join("  ")
      .trimEnd(),
  );
  return `${title}\n${lines.join("\n")}`;
}

function markdownTable({ columns, rows }: Table): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  const rule = columns.map((_, column) => (isFigures(rows, column) ? "--:" : "---"));
  return [columns, rule, ...rows.map((row) => row.map(formatCell))].map(line).join("\n");
}

function isFigures(rows: Table["rows"], column: number): boolean {
  return rows.some((row) => row[column] !== null) && rows.every((row) => typeof row[column] !== "string");
}
