/** `npm start`: the main job on the bundled model. Eight tales that share an opening are continued at once from one paged cache. */

import type { GenerateRequest } from "../engine/types.ts";
import { createBoard } from "./board.ts";
import { defineCommand, modelOption, modelWord } from "./defineCommand.ts";
import { EXIT } from "./exit.ts";
import { formatBytes, formatInteger, formatRate, formatSeconds, plural } from "./figures.ts";
import { PROGRAM } from "./invocation.ts";
import { type LoadedEngine, withEngine } from "./loadEngine.ts";
import { splitModel } from "./modelWords.ts";
import { loadOptions, type ParsedOptions, readLoadOptions, readSampling, samplingOptions } from "./options.ts";
import { type StreamedTexts, streamTogether } from "./streamTogether.ts";
import { wrapText } from "./textLayout.ts";

const OPENING = `The Inn in the Snow

Once upon a time, when the snow lay deep upon the mountains and the road was lost, eight travellers came one after another to the
same inn at the edge of the great forest. The old landlord gave them bread and soup, laid another log upon the fire, and said to them:
"The night is long, and nobody can go on before the morning. Let each of you tell a tale, and whoever tells the best of them shall have
the bed beside the stove." So they drew their chairs to the hearth, and one of them began to tell:

`.replace(/(?<!\n)\n(?!\n)/g, " ");

const BEGINNINGS: readonly (readonly [title: string, beginning: string])[] = [
  ["The king's daughters", "There was once a king who had three daughters,"],
  ["The fox and the wolf", "A hungry fox once met a wolf"],
  ["The fisherman", "There was once a poor fisherman who"],
  ["The old woman by the sea", "In a hut beside the sea there lived an old woman,"],
  ["The soldier", "A soldier was coming home from the wars,"],
  ["The tailor", "There was once a little tailor who"],
  ["The miller's sons", "There was a miller who had three sons, and the youngest"],
  ["The witch", "Deep in the forest there lived a witch,"],
];

export const demo = defineCommand({
  name: "demo",
  description: "continues eight tales at once that share an opening, with live figures",
  options: { MODEL: modelWord, model: modelOption, ...samplingOptions, ...loadOptions },
  async run(args, signal) {
    const { model } = splitModel(args._, args.model as string | undefined);
    await withEngine(model, readLoadOptions(args), signal, (loaded) => tellTales(loaded, args, signal));
  },
});

async function tellTales(
  { engine, loadSeconds }: LoadedEngine,
  args: ParsedOptions,
  signal: AbortSignal,
): Promise<void> {
  const { name, numParameters, device } = engine.describe();
  console.log(
    `${name} (${formatInteger(numParameters)} parameters) on ${device}, loaded in ${formatSeconds(loadSeconds)}`,
  );
  const width = Math.min(100, (process.stdout.columns ?? 101) - 1);
  console.log(`\n${wrapText(OPENING, width).join("\n")}\n`);
  const sampling = readSampling(args);
  const requests = BEGINNINGS.map(([, beginning], index): GenerateRequest => {
    const seed = (sampling.seed ?? 1) + index;
    return { maxTokens: 220, repetitionPenalty: 1.1, ...sampling, seed, prompt: OPENING + beginning };
  });
  // The opening is computed once, alone; its pages are then shared by all eight.
  await engine.complete({ prompt: OPENING, maxTokens: 1, signal });
  const board = createBoard(BEGINNINGS.map(([title]) => title));
  let told: StreamedTexts;
  try {
    for (const [lane, [, beginning]] of BEGINNINGS.entries()) board.append(lane, beginning);
    told = await streamTogether(engine, requests, board, signal);
  } finally {
    board.close();
  }
  console.log(summary(told));
  process.exitCode = EXIT.ok;
}

function summary({ samples, seconds, mostUsedPages, stats }: StreamedTexts): string {
  const tales = samples.map(([sample]) => sample);
  const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
  const tokens = sum(tales.map(({ usage }) => usage.completionTokens));
  const prompt = sum(tales.map(({ usage }) => usage.promptTokens));
  const cached = sum(tales.map(({ usage }) => usage.cachedTokens));
  const rates = tales.map(({ timing }) => timing.tokensPerSecond);
  const pageBytes = stats.cacheBytes / stats.numPages;
  return `${plural(tales.length, "tale")}, ${plural(tokens, "token")} in ${formatSeconds(seconds)}: ${formatRate(tokens / seconds)} tokens/s in all, ${formatRate(Math.min(...rates))} to ${formatRate(Math.max(...rates))} each
prefix cache: ${formatInteger(cached)} of ${formatInteger(prompt)} prompt tokens were there already, because the tales share their opening
cache: ${plural(mostUsedPages, "page")} of ${stats.pageSize} tokens at most, ${formatBytes(mostUsedPages * pageBytes)} of ${formatBytes(stats.cacheBytes)}

Try next:
  ${PROGRAM} run "The Fox and the Crow" "The Three Wishes" --max-tokens 200
  ${PROGRAM} bench`;
}
