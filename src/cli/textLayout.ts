/** Text that has to fit a terminal: control characters taken out, widths in cells, word wrapping. Where it is drawn is the boards'. */

/** `text` without the control characters with which a model could steer the terminal; newlines and tabs stay. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is removed
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "");
}

/** Cells that a character takes: 0 for marks that combine, 2 for East Asian wide characters and emoji, else 1. */
function cellWidth(character: string): number {
  if (/^[\p{Mn}\p{Me}\p{Cf}]$/u.test(character)) return 0;
  const code = character.codePointAt(0) ?? 0;
  if (code < 0x1100) return 1;
  const isWide =
    code <= 0x115f ||
    (code >= 0x2e80 && code <= 0xa4cf) ||
    (code >= 0xac00 && code <= 0xd7a3) ||
    (code >= 0xf900 && code <= 0xfaff) ||
    (code >= 0xfe30 && code <= 0xfe6f) ||
    (code >= 0xff00 && code <= 0xff60) ||
    (code >= 0xffe0 && code <= 0xffe6) ||
    (code >= 0x1f300 && code <= 0x1faff) ||
    (code >= 0x20000 && code <= 0x3fffd);
  return isWide ? 2 : 1;
}

/** Cells that `text` takes on one line. */
export function textWidth(text: string): number {
  let width = 0;
  for (const character of text) width += cellWidth(character);
  return width;
}

/** The longest beginning of `text` that fits into `width` cells. */
export function fitWidth(text: string, width: number): string {
  let used = 0;
  let fitted = "";
  for (const character of text) {
    used += cellWidth(character);
    if (used > width) break;
    fitted += character;
  }
  return fitted;
}

/** Lines of at most `width` cells: broken at spaces where possible, blank lines dropped. */
export function wrapText(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const paragraph of printable(text).split("\n")) {
    let line = "";
    for (const word of paragraph.split(/[ \t]+/)) {
      if (word === "") continue;
      const joined = line === "" ? word : `${line} ${word}`;
      if (textWidth(joined) <= width) {
        line = joined;
        continue;
      }
      if (line !== "") lines.push(line);
      let rest = word;
      while (textWidth(rest) > width) {
        const part = fitWidth(rest, width) || rest.slice(0, 1);
        lines.push(part);
        rest = rest.slice(part.length);
      }
      line = rest;
    }
    if (line !== "") lines.push(line);
  }
  return lines;
}
