/** Puts the chunks of a request together to whole samples. */

import type { Completion, FinishReason, GenerateChunk, Logprobs, Sample, Timing, Usage } from "./types.ts";

interface GrowingSample {
  text: string;
  tokenIds: number[];
  logprobs: Logprobs[] | undefined;
  finishReason: FinishReason;
  stopReason: string | number | undefined;
  usage: Usage;
  timing: Timing;
}

/** Runs the iteration to its end. Rejects with what it throws. */
export async function collectSamples(chunks: AsyncIterable<GenerateChunk>): Promise<Completion> {
  const samples: GrowingSample[] = [];
  let promptLogprobs: Completion["promptLogprobs"];
  for await (const chunk of chunks) {
    samples[chunk.index] ??= {
      ...chunk,
      text: "",
      tokenIds: [],
      logprobs: undefined,
      finishReason: "aborted",
      stopReason: undefined,
    };
    const sample = samples[chunk.index];
    sample.text += chunk.text;
    sample.tokenIds.push(...chunk.tokenIds);
    if (chunk.logprobs !== undefined) {
      sample.logprobs ??= [];
      sample.logprobs.push(...chunk.logprobs);
    }
    sample.usage = chunk.usage;
    sample.timing = chunk.timing;
    if (chunk.finishReason !== undefined) sample.finishReason = chunk.finishReason;
    if (chunk.stopReason !== undefined) sample.stopReason = chunk.stopReason;
    promptLogprobs ??= chunk.promptLogprobs;
  }
  return {
    text: samples[0].text,
    samples: samples.map(
      ({ logprobs, stopReason, ...sample }, index): Sample => ({
        ...sample,
        index,
        ...(logprobs === undefined ? {} : { logprobs }),
        ...(stopReason === undefined ? {} : { stopReason }),
      }),
    ),
    ...(promptLogprobs === undefined ? {} : { promptLogprobs }),
  };
}
