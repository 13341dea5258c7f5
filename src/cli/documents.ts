// Texts of several documents, and how to score them: each is tokenised by itself, as it was for training, and the tokens are joined.
import { evaluateText } from "../engine/evaluate.ts";
import type { Engine, EvaluateOptions, Evaluation } from "../engine/index.ts";

/** A line that holds only this ends a document (GPT-2's convention, and that of the corpus the bundled model was trained on). */
const SEPARATOR = /^<\|endoftext\|>$/m;

/** The documents of `text` without the line breaks around them; a text without separators is one document, left as it is. */
export function splitDocuments(text: string): string[] {
  const parts = text.replaceAll("\r\n", "\n").split(SEPARATOR);
  if (parts.length === 1) return [text];
  return parts.map((part) => part.replace(/^\n+|\n+$/g, "")).filter((part) => part !== "");
}

/**
 * `Engine.evaluate` for a text of documents: every document begins with the model's own begin token, and windows run over all of them.
 * Bits per byte count every byte of `text`, separators included.
 */
export function evaluateDocuments(engine: Engine, text: string, options: EvaluateOptions): Promise<Evaluation> {
  const scorer: Parameters<typeof evaluateText>[0] = {
    async tokenize(_, tokenizeOptions) {
      const tokens: number[] = [];
      for (const document of splitDocuments(text))
        for (const token of await engine.tokenize(document, tokenizeOptions)) tokens.push(token);
      return tokens;
    },
    complete: (request) => engine.complete(request),
    describe: () => engine.describe(),
  };
  return evaluateText(scorer, text, options);
}
