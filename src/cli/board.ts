/**
 * Several texts that grow at once, as plain lines: each line says which text it belongs to, so that a pipe, a log or a screen reader
 * can follow. The same on a terminal that can be redrawn is terminalBoard.ts.
 */

import { TerminalBoard } from "./terminalBoard.ts";
import { printable, wrapText } from "./textLayout.ts";

/** Where texts that grow at once are shown. `lane` numbers a text from 0. */
export interface Board {
  /** Adds to a text. */
  append(lane: number, text: string): void;
  /** Says something beside a text's title, such as its rate. */
  annotate(lane: number, note: string): void;
  /** No more text comes for this one. */
  finish(lane: number): void;
  /** The figures of all together, newest. */
  showFigures(line: string): void;
  /** Ends the drawing; the texts stay readable. */
  close(): void;
}

/** A stream that text is written to; `process.stdout` is one. */
export interface TextStream {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
}

/** A redrawn board on a terminal, plain lines anywhere else. */
export function createBoard(titles: readonly string[], stream: TextStream = process.stdout): Board {
  const canRedraw = stream.isTTY === true && process.env.TERM !== "dumb" && (stream.rows ?? 0) >= titles.length + 4;
  return canRedraw ? new TerminalBoard(titles, stream) : new PlainBoard(titles, stream);
}

const PLAIN_WIDTH = 100;
const FIGURES_INTERVAL_MS = 1000;

/** Lines of `[n] text`, each written once its text is certain not to change; figures at most once a second. */
export class PlainBoard implements Board {
  readonly #stream: TextStream;
  readonly #titles: readonly string[];
  readonly #pending: string[];
  readonly #isTitled: boolean[];
  #figuresAt = Number.NEGATIVE_INFINITY;

  constructor(titles: readonly string[], stream: TextStream) {
    this.#stream = stream;
    this.#titles = titles;
    this.#pending = titles.map(() => "");
    this.#isTitled = titles.map(() => false);
  }

  append(lane: number, text: string): void {
    const lines = (this.#pending[lane] + printable(text)).split("\n");
    const unfinished = lines.pop() ?? "";
    for (const line of lines) this.#write(lane, wrapText(line, PLAIN_WIDTH));
    const wrapped = wrapText(unfinished, PLAIN_WIDTH);
    this.#write(lane, wrapped.slice(0, -1));
    // What stays pending keeps its trailing space, or the next word would be glued to it.
    const last = wrapped.at(-1) ?? "";
    this.#pending[lane] = /\s$/.test(unfinished) && last !== "" ? `${last} ` : last;
  }

  annotate(): void {}

  finish(lane: number): void {
    this.#write(lane, wrapText(this.#pending[lane], PLAIN_WIDTH));
    this.#pending[lane] = "";
  }

  showFigures(line: string): void {
    const now = performance.now();
    if (now - this.#figuresAt < FIGURES_INTERVAL_MS) return;
    this.#figuresAt = now;
    this.#stream.write(`--- ${line}\n`);
  }

  close(): void {
    for (const lane of this.#titles.keys()) this.finish(lane);
  }

  #write(lane: number, lines: readonly string[]): void {
    for (const line of lines) {
      if (!this.#isTitled[lane]) this.#stream.write(`[${lane + 1}] ${this.#titles[lane]}\n`);
      this.#isTitled[lane] = true;
      this.#stream.write(`[${lane + 1}] ${line}\n`);
    }
  }
}
