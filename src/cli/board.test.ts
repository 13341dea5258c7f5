import { describe, expect, it } from "vitest";
import { createBoard, PlainBoard, type TextStream } from "./board.ts";
import { TerminalBoard } from "./terminalBoard.ts";

function recorded(fields: Partial<TextStream> = {}): { stream: TextStream; written(): string } {
  const parts: string[] = [];
  return { stream: { write: (text) => parts.push(text), ...fields }, written: () => parts.join("") };
}

describe("PlainBoard", () => {
  it("writes whole lines, each with its text's number, titles first", () => {
    const { stream, written } = recorded();
    const board = new PlainBoard(["The fox", "The wolf"], stream);
    board.append(0, "Once upon ");
    board.append(1, "There was");
    board.append(0, "a time\nthere was");
    expect(written()).toBe("[1] The fox\n[1] Once upon a time\n");
    board.finish(0);
    board.close();
    expect(written()).toBe("[1] The fox\n[1] Once upon a time\n[1] there was\n[2] The wolf\n[2] There was\n");
  });

  it("breaks long paragraphs without losing or joining words, however they arrive", () => {
    const { stream, written } = recorded();
    const board = new PlainBoard(["t"], stream);
    const text = Array.from({ length: 200 }, (_, i) => `word${i}`).join(" ");
    for (const piece of text.match(/.{1,7}/gs) ?? []) board.append(0, piece);
    board.close();
    const lines = written().trim().split("\n").slice(1);
    expect(lines.map((line) => line.slice(4)).join(" ")).toBe(text);
    expect(Math.max(...lines.map(({ length }) => length))).toBeLessThanOrEqual(104);
  });

  it("writes figures at most once a second", () => {
    const { stream, written } = recorded();
    const board = new PlainBoard([], stream);
    for (let i = 0; i < 5; i++) board.showFigures(`figures ${i}`);
    expect(written()).toBe("--- figures 0\n");
  });
});

describe("TerminalBoard", () => {
  it("is chosen for a terminal with room", () => {
    const tall = recorded({ isTTY: true, rows: 24, columns: 80 });
    const board = createBoard(["a"], tall.stream);
    expect(board).toBeInstanceOf(TerminalBoard);
    board.close();
    expect(createBoard(["a"], recorded({ isTTY: true, rows: 3 }).stream)).toBeInstanceOf(PlainBoard);
    expect(createBoard(["a"], recorded().stream)).toBeInstanceOf(PlainBoard);
  });

  it("draws frames that fit, and leaves the whole texts and the cursor", async () => {
    const { stream, written } = recorded({ isTTY: true, rows: 14, columns: 40 });
    const board = new TerminalBoard(["The fox", "The wolf"], stream);
    board.append(0, "word ".repeat(100));
    board.append(1, "short\u001b[31m");
    board.annotate(0, "12 tokens");
    board.showFigures("all together");
    await new Promise((resolve) => setTimeout(resolve, 150));
    const frame = written();
    expect(frame).toContain("all together");
    expect(frame.split("\n").length).toBeLessThanOrEqual(14);
    expect(frame).not.toContain("\u001b[31m");
    board.close();
    board.close();
    const whole = written().slice(frame.length);
    expect(whole.match(/word/g)).toHaveLength(100);
    expect(whole.endsWith("\u001b[?25h")).toBe(true);
  });
});
