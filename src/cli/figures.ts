/** Numbers as people read them: bytes, counts, rates, times. */

/** `5.6 MB`, `1.2 GB`: decimal units, three significant digits. */
export function formatBytes(numBytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = numBytes;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? value : significant(value)} ${units[unit]}`;
}

/** `5.28 million`, `1.03 billion`, `4,096`. */
export function formatCount(count: number): string {
  if (count >= 999.5e6) return `${significant(count / 1e9)} billion`;
  if (count >= 999.5e3) return `${significant(count / 1e6)} million`;
  return formatInteger(count);
}

/** `279,733`. */
export function formatInteger(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

/** A rate to three digits, without a unit: `1,204`, `98.3`. */
export function formatRate(perSecond: number): string {
  return perSecond >= 999.5 ? formatInteger(perSecond) : significant(perSecond);
}

/** `850 µs`, `12.3 ms`, `4.20 s`, `2 min 5 s`. */
export function formatSeconds(seconds: number): string {
  if (seconds >= 99.95) {
    const whole = Math.round(seconds);
    return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  }
  if (seconds >= 0.9995) return `${significant(seconds)} s`;
  if (seconds >= 0.9995e-3) return `${significant(seconds * 1e3)} ms`;
  return `${significant(seconds * 1e6)} µs`;
}

/** `1 page`, `12 pages`. */
export function plural(count: number, noun: string): string {
  return `${formatInteger(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function significant(value: number): string {
  if (value === 0) return "0";
  return value.toFixed(Math.max(0, Math.min(2, 2 - Math.floor(Math.log10(Math.abs(value)) + 1e-9))));
}

/** A table of left-aligned first columns and right-aligned others, two spaces apart; the first row is the heading. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const line = (row: readonly string[]): string =>
    row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]) : cell.padStart(widths[column]))).join("  ");
  return rows.map((row) => line(row).trimEnd()).join("\n");
}
