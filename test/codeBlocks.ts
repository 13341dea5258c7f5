/** Finds the fenced code blocks of a Markdown text and makes them runnable against the sources. Indented blocks are illustrations. */

/** A fenced block: `line` is that of the opening fence, counted from 1. */
export interface CodeBlock {
  readonly language: string;
  readonly line: number;
  readonly text: string;
}

/** Every fenced block of `markdown`, in order. Throws when a fence is never closed. */
export function codeBlocks(markdown: string): CodeBlock[] {
  const blocks: CodeBlock[] = [];
  let open: { language: string; line: number; lines: string[] } | undefined;
  for (const [index, line] of markdown.split("\n").entries()) {
    const fence = /^```(\w*)\s*$/.exec(line);
    if (open === undefined) {
      if (fence !== null) open = { language: fence[1], line: index + 1, lines: [] };
    } else if (line.trimEnd() === "```") {
      blocks.push({ language: open.language, line: open.line, text: open.lines.join("\n") });
      open = undefined;
    } else open.lines.push(line);
  }
  if (open !== undefined) throw new Error(`the code block opened on line ${open.line} is never closed`);
  return blocks;
}

/** The first line of a block that all later ones of its page and language go on from. */
const BEGINNING = "// Every block below begins with these lines.";

/** What is run of a page: each block as it stands, behind the page's beginning if it has one. A beginning is not run alone. */
export function programs(blocks: readonly CodeBlock[]): CodeBlock[] {
  const beginnings = new Map<string, CodeBlock>();
  return blocks.flatMap((block) => {
    if (block.text.startsWith(`${BEGINNING}\n`)) {
      beginnings.set(block.language, block);
      return [];
    }
    const beginning = beginnings.get(block.language);
    return [beginning === undefined ? block : { ...block, text: `${beginning.text}\n${block.text}` }];
  });
}

/** `text` with the package's names replaced by its sources under `root` (a file URL ending in a slash). */
export function againstSources(text: string, root: string): string {
  return text.replace(/(from\s+|import\()"kvasir(?:\/(\w+))?"/g, (_, before: string, entry: string | undefined) => {
    return `${before}"${root}src/${entry === undefined ? "" : `${entry}/`}index.ts"`;
  });
}

/** The commands of a shell block, one a line, without comments and with `\` continuations joined. */
export function shellCommands(text: string): string[] {
  const lines = text.replaceAll("\\\n", " ").split("\n");
  return lines.map((line) => line.replace(/(^|\s)#.*$/, "").trim()).filter((line) => line !== "");
}
