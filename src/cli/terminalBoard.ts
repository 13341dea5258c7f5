/**
 * Several texts that grow at once on a terminal: a frame of fixed height, redrawn in place, each text with a title line and its newest
 * lines below it. Plain output is board.ts's.
 */

import { styleText } from "node:util";
import type { Board, TextStream } from "./board.ts";
import { fitWidth, textWidth, wrapText } from "./textLayout.ts";

const FRAME_INTERVAL_MS = 60;
const MOST_LINES_PER_TEXT = 5;
const HIDE_CURSOR = "\u001b[?25l";
const SHOW_CURSOR = "\u001b[?25h";
/** Between these a terminal that knows them shows nothing half-drawn; others ignore them. */
const BEGIN_UPDATE = "\u001b[?2026h";
const END_UPDATE = "\u001b[?2026l";

interface Lane {
  readonly title: string;
  text: string;
  note: string;
  isFinished: boolean;
}

/** Owns the last lines of the terminal until `close`, which leaves the whole texts there instead. */
export class TerminalBoard implements Board {
  readonly #stream: TextStream;
  readonly #lanes: Lane[];
  #figures = "";
  #drawnLines = 0;
  #drawnColumns = 0;
  #isChanged = true;
  #timer: NodeJS.Timeout | undefined;

  constructor(titles: readonly string[], stream: TextStream) {
    this.#stream = stream;
    this.#lanes = titles.map((title) => ({ title, text: "", note: "", isFinished: false }));
    this.#stream.write(HIDE_CURSOR);
    this.#timer = setInterval(() => this.#draw(), FRAME_INTERVAL_MS);
  }

  append(lane: number, text: string): void {
    this.#lanes[lane].text += text;
    this.#isChanged = true;
  }

  annotate(lane: number, note: string): void {
    this.#lanes[lane].note = note;
    this.#isChanged = true;
  }

  finish(lane: number): void {
    this.#lanes[lane].isFinished = true;
    this.#isChanged = true;
  }

  showFigures(line: string): void {
    this.#figures = line;
    this.#isChanged = true;
  }

  close(): void {
    if (this.#timer === undefined) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    const columns = this.#columns();
    const whole = this.#lanes.flatMap((lane) => [
      this.#titleLine(lane, columns),
      ...indented(wrapText(lane.text, columns - 2)),
      "",
    ]);
    this.#stream.write(`${this.#erase()}${whole.join("\n")}\n${SHOW_CURSOR}`);
  }

  #columns(): number {
    // The last column stays free: some terminals wrap when it is written.
    return Math.max(20, (this.#stream.columns ?? 80) - 1);
  }

  #draw(): void {
    if (!this.#isChanged) return;
    this.#isChanged = false;
    const columns = this.#columns();
    const lines = this.#frame(columns);
    this.#stream.write(`${BEGIN_UPDATE}${this.#erase()}${lines.join("\n")}\n${END_UPDATE}`);
    this.#drawnLines = lines.length;
    this.#drawnColumns = columns;
  }

  #frame(columns: number): string[] {
    const room = (this.#stream.rows ?? 24) - 3;
    const perLane = Math.min(MOST_LINES_PER_TEXT, Math.floor(room / this.#lanes.length) - 1);
    const lines: string[] = [];
    for (const lane of this.#lanes) {
      if (perLane < 1) {
        lines.push(oneLine(lane, columns));
        continue;
      }
      const tail = wrapText(lane.text, columns - 2).slice(-perLane);
      while (tail.length < perLane) tail.push("");
      lines.push(this.#titleLine(lane, columns), ...indented(tail));
    }
    return [...lines, "", styleText("bold", fitWidth(this.#figures, columns))];
  }

  #titleLine({ title, note, isFinished }: Lane, columns: number): string {
    const mark = isFinished ? "■" : "▸";
    const left = fitWidth(`${mark} ${title}`, columns - textWidth(note) - 2);
    const gap = " ".repeat(Math.max(1, columns - textWidth(left) - textWidth(note)));
    return `${styleText("cyan", left)}${gap}${styleText("dim", note)}`;
  }

  #erase(): string {
    if (this.#drawnLines === 0) return "";
    // After a resize the old lines may have wrapped, and how is not known: the screen is cleared.
    if (this.#drawnColumns !== this.#columns()) return "\u001b[2J\u001b[H";
    return `\u001b[${this.#drawnLines}A\r\u001b[J`;
  }
}

function indented(lines: readonly string[]): string[] {
  return lines.map((line) => `  ${line}`);
}

function oneLine({ title, text, note }: Lane, columns: number): string {
  const head = fitWidth(title, 14).padEnd(15);
  const newest = wrapText(text, Math.max(10, columns - 16 - textWidth(note)));
  return fitWidth(`${head}${newest.at(-1) ?? ""} ${note}`, columns);
}
