/** `kvasir eval`: how well a model predicts a text. */

import { existsSync, readFileSync, statSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import { defineCommand, jsonOption, modelOption, modelWord } from "./defineCommand.ts";
import { CommandError, UsageError } from "./exit.ts";
import { formatInteger, formatRate, formatSeconds } from "./figures.ts";
import { withEngine } from "./loadEngine.ts";
import { isModelName } from "./modelNames.ts";
import { loadOptions, readLoadOptions, readNumber } from "./options.ts";
import { readStandardInput } from "./standardInput.ts";

export const evaluate = defineCommand({
  name: "eval",
  description: "perplexity and bits per byte of a text",
  options: {
    MODEL: modelWord,
    text: {
      type: "positional",
      required: false,
      description: "a UTF-8 file, also .gz; - for standard input. A line <|endoftext|> ends a document",
    },
    model: modelOption,
    json: jsonOption,
    window: {
      type: "string",
      description: "tokens predicted in each window, without overlap (default 512)",
      valueHint: "n",
    },
    ...loadOptions,
  },
  async run(args, signal) {
    const { model, file } = splitWords(args._, args.model as string | undefined);
    const window = readNumber(args, "window", { least: 1, isInteger: true });
    const text = await readText(file);
    await withEngine(model, readLoadOptions(args), signal, async ({ engine, path }) => {
      const isWatched = process.stderr.isTTY === true;
      const result = await engine.evaluate(text, {
        signal,
        ...(window === undefined ? {} : { window }),
        onProgress({ numPredicted, numTokens, meanNll }) {
          const share = Math.floor((100 * numPredicted) / numTokens);
          if (isWatched)
            process.stderr.write(
              `\r\u001b[K${share} % of ${formatInteger(numTokens)} tokens, perplexity ${Math.exp(meanNll).toFixed(3)}`,
            );
        },
      });
      if (isWatched) process.stderr.write("\r\u001b[K");
      if (args.json === true) {
        console.log(JSON.stringify({ model: path, text: file, ...result }, undefined, 2));
        return;
      }
      console.log(`perplexity     ${result.perplexity.toFixed(4)}`);
      console.log(`bits per byte  ${result.bitsPerByte.toFixed(4)}`);
      console.log(`mean NLL       ${result.meanNll.toFixed(4)} nats per token`);
      const rate = formatRate(result.numPredicted / result.seconds);
      console.log(
        `${formatInteger(result.numTokens)} tokens, ${formatInteger(result.numBytes)} bytes, ${formatSeconds(result.seconds)}, ${rate} tokens/s`,
      );
    });
  },
});

/** One word is the text; two are MODEL and the text. */
function splitWords(words: readonly string[], option: string | undefined): { model: string | undefined; file: string } {
  const expected = option === undefined ? 2 : 1;
  if (words.length > expected)
    throw new UsageError(`expected [MODEL] TEXT, got ${words.length} words: ${words.join(" ")}`);
  const file = words.at(-1);
  if (file === undefined) throw new UsageError("TEXT is missing: a file, or - for standard input");
  if (words.length === 1 && option === undefined && /\.gguf$/i.test(file) && isModelName(file)) {
    throw new UsageError(`TEXT is missing: ${file} is the model`);
  }
  return { model: option ?? (words.length === 2 ? words[0] : undefined), file };
}

async function readText(file: string): Promise<string> {
  if (file === "-") return readStandardInput("TEXT");
  if (!existsSync(file) || statSync(file).isDirectory()) throw new CommandError(`no text file "${file}"`);
  const bytes = readFileSync(file);
  const content = file.endsWith(".gz") ? gunzipSync(bytes) : bytes;
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(content);
  } catch (cause) {
    throw new CommandError(`${file} is not UTF-8 text`, { cause });
  }
}
