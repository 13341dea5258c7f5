/**
 * The engine where it runs: takes messages, steps the core while it has work, and sends what each step produced. Between two steps it
 * lets messages in, so that a cancellation or a new request takes effect with the next step. What a step does is engineCore.ts's matter.
 */

import type { EngineBackend, LoadBackend } from "./backend.ts";
import type { Channel } from "./channel.ts";
import { EngineCore, type StepOutput } from "./engineCore.ts";
import { LiveRequest, LiveSample, outputText } from "./liveRequest.ts";
import {
  type CallMessage,
  type Calls,
  type ChunkOfRequest,
  type FromWorker,
  type PlainRequest,
  type ToWorker,
  toPlainError,
} from "./messages.ts";
import { nextTurn } from "./nextTurn.ts";
import { checkRequestFields } from "./optionFields.ts";
import { checkTokens, isConversation, promptTokens } from "./promptTokens.ts";
import { RequestSampler } from "./requestSampler.ts";
import { resolveSampling } from "./samplingParams.ts";
import type { EngineStats } from "./types.ts";

const DEFAULT_MAX_TOKENS = 256;

type HostChannel = Channel<ToWorker, FromWorker>;

/** Serves one handle: loads the model it asks for, then runs its requests until it closes. */
export function serveEngine(channel: HostChannel, loadBackend: LoadBackend): void {
  let host: EngineHost | undefined;
  let isAbandoned = false;
  const load = async (message: Extract<ToWorker, { type: "load" }>) => {
    const backend = await loadBackend(message.model, message.options, (progress) =>
      channel.post({ type: "progress", progress }),
    );
    host = new EngineHost(channel, backend);
    if (isAbandoned) await host.close();
    else channel.post({ type: "loaded", description: backend.description });
  };
  const report = (error: unknown) => channel.post({ type: "broken", error: toPlainError(error) });
  channel.listen({
    message(message) {
      if (message.type === "load") load(message).catch(report);
      else host?.receive(message);
    },
    ended() {
      isAbandoned = true;
      host?.close().catch(report);
    },
  });
}

class EngineHost {
  readonly #channel: HostChannel;
  readonly #backend: EngineBackend;
  readonly #live = new Map<string, LiveRequest>();
  readonly #core: EngineCore;
  #running: Promise<void> | undefined;
  #isClosing = false;
  #numFinished = 0;
  #promptTokens = 0;
  #busySeconds = 0;

  constructor(channel: HostChannel, backend: EngineBackend) {
    this.#channel = channel;
    this.#backend = backend;
    const { runner, maxNumBatchedTokens, maxNumSeqs } = backend;
    const sampler = new RequestSampler(this.#live, runner.vocabSize);
    this.#core = new EngineCore({ runner, sampler, maxNumBatchedTokens, maxNumSeqs });
  }

  receive(message: Exclude<ToWorker, { type: "load" }>): void {
    switch (message.type) {
      case "generate":
        this.#answering(message.id, () => this.#start(message.id, message.request));
        break;
      case "cancel":
        this.#cancel(String(message.id));
        break;
      case "call":
        this.#answering(message.id, () => {
          this.#channel.post({ type: "answer", id: message.id, answer: this.#answer(message) });
        });
        break;
      case "close":
        this.close().then(
          () => this.#channel.post({ type: "closed" }),
          (error) => this.#channel.post({ type: "broken", error: toPlainError(error) }),
        );
    }
  }

  /** Ends what runs and frees the model. */
  async close(): Promise<void> {
    if (this.#isClosing) return;
    this.#isClosing = true;
    for (const id of this.#live.keys()) this.#cancel(id);
    await this.#running;
    await this.#backend.runner.close();
  }

  /** What goes wrong here goes wrong for this request or call alone. */
  #answering(id: number, act: () => void): void {
    try {
      act();
    } catch (error) {
      this.#channel.post({ type: "failed", id, error: toPlainError(error) });
    }
  }

  #start(id: number, request: PlainRequest): void {
    checkRequestFields(request);
    const { tokenizer, description, runner } = this.#backend;
    const { vocabSize } = runner;
    const { prompt, maxTokens = DEFAULT_MAX_TOKENS, n = 1, cacheSalt } = request;
    const stops = typeof request.stop === "string" ? [request.stop] : (request.stop ?? []);
    const sampling = resolveSampling(request, { vocabSize, eosTokenIds: description.eosTokenIds });
    const tokens = Int32Array.from(promptTokens(prompt, { tokenizer, vocabSize }, request));
    const newText = () => outputText(tokenizer, stops, !isConversation(prompt));
    const firstText = newText(); // refuses stop strings before anything is taken
    const key = String(id);
    this.#core.addRequest({
      id: key,
      promptTokens: tokens,
      maxTokens,
      n,
      sampling,
      ...(cacheSalt === undefined ? {} : { cacheSalt }),
    });
    const samples = Array.from(
      { length: n },
      (_, index) => new LiveSample(index, sampling, tokens, index === 0 ? firstText : newText()),
    );
    this.#live.set(key, new LiveRequest(id, tokens.length, samples));
    this.#promptTokens += tokens.length;
    this.#running ??= this.#run();
  }

  /** The handle has forgotten the request already: nothing more is said about it. */
  #cancel(key: string): void {
    this.#core.abort(key);
    this.#live.delete(key);
  }

  async #run(): Promise<void> {
    try {
      await nextTurn(); // requests that come together shall start together
      while (this.#core.hasWork()) {
        const startedAt = performance.now();
        const { outputs } = await this.#core.step();
        this.#busySeconds += (performance.now() - startedAt) / 1000;
        this.#report(outputs);
        await nextTurn();
      }
    } catch (error) {
      this.#channel.post({ type: "broken", error: toPlainError(error) });
    } finally {
      this.#running = undefined; // in the same breath as the last look for work: the next request starts a new run
    }
  }

  #report(outputs: readonly StepOutput[]): void {
    const chunks: ChunkOfRequest[] = [];
    for (const output of outputs) {
      const request = this.#live.get(output.requestId);
      if (request === undefined) continue;
      if (output.finishReason === "error") {
        this.#live.delete(output.requestId);
        this.#channel.post({ type: "failed", id: request.id, error: toPlainError(output.error) });
        continue;
      }
      const chunk = request.take(output);
      if (chunk === undefined) continue;
      chunks.push({ id: request.id, chunk, isLast: request.isFinished });
      if (!request.isFinished) continue;
      this.#live.delete(output.requestId);
      this.#numFinished++;
    }
    if (chunks.length > 0) this.#channel.post({ type: "chunks", chunks });
  }

  #answer(call: CallMessage): Calls[keyof Calls]["answer"] {
    switch (call.name) {
      case "tokenize":
        return promptTokens(
          call.question.prompt,
          { tokenizer: this.#backend.tokenizer, vocabSize: this.#backend.runner.vocabSize },
          call.question.options,
        );
      case "detokenize":
        return this.#backend.tokenizer.decode(
          checkTokens("tokenIds", call.question.tokenIds, this.#backend.runner.vocabSize),
        );
      case "stats":
        return this.#stats();
    }
  }

  #stats(): EngineStats {
    const stats = this.#core.stats();
    const bytesPerPage = this.#backend.cacheBytes / stats.numPages;
    return {
      numRunning: stats.numRunning,
      numWaiting: stats.numWaiting,
      numFinished: this.#numFinished,
      numPages: stats.numPages,
      usedPages: stats.usedPages,
      freePages: stats.freePages,
      cachedPages: stats.cachedPages,
      pageSize: stats.pageSize,
      cacheBytes: this.#backend.cacheBytes,
      usedCacheBytes: stats.usedPages * bytesPerPage,
      prefixHitTokens: stats.hitTokens,
      promptTokens: this.#promptTokens,
      generatedTokens: stats.numGeneratedTokens,
      numPreemptions: stats.numPreemptions,
      numSteps: stats.numSteps,
      busySeconds: this.#busySeconds,
      tokensPerSecond: this.#busySeconds > 0 ? stats.numGeneratedTokens / this.#busySeconds : 0,
    };
  }
}
