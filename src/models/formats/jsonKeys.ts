/** Finds what JSON.parse hides: a key that appears twice in the outermost object of a JSON text. */

/** The first key of the outermost object of `text`, which must be valid JSON, that appears a second time; undefined if none does. */
export function duplicateKey(text: string): string | undefined {
  const seen = new Set<string>();
  let depth = 0;
  let at = 0;
  while (at < text.length) {
    const character = text[at];
    if (character === '"') {
      const end = endOfString(text, at);
      if (depth === 1 && isKey(text, end)) {
        const key = String(JSON.parse(text.slice(at, end))); // undoes the escapes
        if (seen.has(key)) return key;
        seen.add(key);
      }
      at = end;
    } else {
      if (character === "{" || character === "[") depth++;
      else if (character === "}" || character === "]") depth--;
      at++;
    }
  }
  return undefined;
}

/** Index behind the closing quote of the string that begins at `begin`. */
function endOfString(text: string, begin: number): number {
  let at = begin + 1;
  while (at < text.length && text[at] !== '"') at += text[at] === "\\" ? 2 : 1;
  return at + 1;
}

function isKey(text: string, end: number): boolean {
  let at = end;
  while (text[at] === " " || text[at] === "\n" || text[at] === "\r" || text[at] === "\t") at++;
  return text[at] === ":";
}
