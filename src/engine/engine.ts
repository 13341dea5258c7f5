/**
 * The engine as its caller holds it: loads a model into a worker and talks to it in promises and async iterables. What happens in the
 * worker is in host.ts.
 */

import { ArgumentError, KvasirError } from "../tensor/errors.ts";
import type { Channel } from "./channel.ts";
import { ChunkQueue } from "./chunkQueue.ts";
import { collectSamples } from "./completion.ts";
import { type EvaluateOptions, evaluateText } from "./evaluate.ts";
import {
  type Calls,
  type FromWorker,
  fromPlainError,
  type PlainRequest,
  type TokenizeOptions,
  type ToWorker,
} from "./messages.ts";
import { openChannel } from "./openChannel.ts";
import { checkRequest, checkSignal } from "./optionFields.ts";
import type {
  Completion,
  EngineStats,
  Evaluation,
  GenerateChunk,
  GenerateRequest,
  LoadOptions,
  ModelDescription,
  ModelFiles,
  Prompt,
} from "./types.ts";

type EngineChannel = Channel<FromWorker, ToWorker>;

/** How long `close` waits for the worker to free what it holds before it is ended by force. */
const CLOSE_TIMEOUT_MS = 5000;

interface PendingCall {
  resolve(answer: unknown): void;
  reject(error: unknown): void;
}

/**
 * A language model with its cache, in a worker of its own. Takes any number of requests at once and runs them together. To be closed when
 * no longer needed: `await using`, or `close()`.
 */
export class Engine {
  readonly #channel: EngineChannel;
  readonly #description: ModelDescription;
  readonly #requests = new Map<number, ChunkQueue>();
  readonly #calls = new Map<number, PendingCall>();
  #nextId = 0;
  /** Why nothing can be asked any more. */
  #end: Error | undefined;
  #closing: Promise<void> | undefined;
  #onClosed: (() => void) | undefined;

  private constructor(channel: EngineChannel, description: ModelDescription) {
    this.#channel = channel;
    this.#description = description;
  }

  /**
   * Loads a model: a path, or the files themselves where there is no file system. Rejects with FormatError (what the file lacks),
   * CapacityError (memory), ArgumentError (an option), or the reason of `options.signal`.
   */
  static async load(model: string | ModelFiles, options: LoadOptions = {}): Promise<Engine> {
    checkSignal(options.signal);
    options.signal?.throwIfAborted();
    return Engine.connect(await openChannel(options.worker ?? true), model, options);
  }

  /** The same through a channel to a worker that was started by other means; the engine then owns the channel. */
  static connect(channel: EngineChannel, model: string | ModelFiles, options: LoadOptions = {}): Promise<Engine> {
    const { signal, onProgress, worker: _, ...plain } = options;
    return new Promise((resolve, reject) => {
      let engine: Engine | undefined;
      const fail = (error: unknown) => {
        signal?.removeEventListener("abort", onAbort);
        channel.close().then(() => reject(error), reject);
      };
      const onAbort = () => fail(signal?.reason);
      signal?.addEventListener("abort", onAbort, { once: true });
      channel.listen({
        message(message) {
          if (engine !== undefined) return engine.#receive(message);
          if (message.type === "progress") onProgress?.(message.progress);
          if (message.type === "broken") fail(fromPlainError(message.error));
          if (message.type !== "loaded") return;
          signal?.removeEventListener("abort", onAbort);
          engine = new Engine(channel, message.description);
          engine.#updateKeepAlive();
          resolve(engine);
        },
        ended(error) {
          if (engine === undefined) return fail(error);
          engine.#endAll(error);
          engine.#onClosed?.();
        },
      });
      try {
        channel.post({ type: "load", model, options: plain });
      } catch (cause) {
        fail(new ArgumentError("the load options must be plain data, to be sent to the engine's worker", { cause }));
      }
    });
  }

  /**
   * Continues a prompt. The request begins at once; the iterator gives what each step added, and throws what went wrong with this
   * request: ArgumentError (naming the field), CapacityError, LogitsError, DeviceError, or the signal's reason. Leaving the loop cancels the request.
   */
  generate(request: GenerateRequest): AsyncIterableIterator<GenerateChunk> {
    try {
      checkRequest(request);
    } catch (error) {
      return failedQueue(error);
    }
    const { signal, ...plain } = request;
    const id = this.#nextId++;
    const queue = new ChunkQueue((isAbandoned) => {
      signal?.removeEventListener("abort", onAbort);
      if (isAbandoned) this.#cancel(id);
    });
    const onAbort = () => {
      this.#cancel(id);
      queue.fail(signal?.reason);
    };
    if (signal?.aborted) queue.fail(signal.reason);
    else if (this.#end !== undefined) queue.fail(this.#end);
    else {
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#start(id, plain, queue);
    }
    return queue;
  }

  #start(id: number, request: PlainRequest, queue: ChunkQueue): void {
    try {
      this.#channel.post({ type: "generate", id, request });
    } catch (cause) {
      queue.fail(new ArgumentError("the request must be plain data, to be sent to the engine's worker", { cause }));
      return;
    }
    this.#requests.set(id, queue);
    this.#updateKeepAlive();
  }

  #cancel(id: number): void {
    if (this.#requests.delete(id)) this.#channel.post({ type: "cancel", id });
    this.#updateKeepAlive();
  }

  /** The whole result of a request, all samples. Rejects with what `generate` throws. */
  async complete(request: GenerateRequest): Promise<Completion> {
    return collectSamples(this.generate(request));
  }

  /** The tokens of a prompt as `generate` would compute it. Rejects with ArgumentError as that would. */
  tokenize(prompt: Prompt, options: TokenizeOptions = {}): Promise<number[]> {
    return this.#call("tokenize", { prompt, options });
  }

  /**
   * The text of tokens, special ones by name; a token that only pads the model's vocabulary has none. Rejects with ArgumentError for what
   * is not an integer from 0 to `vocabSize` - 1.
   */
  detokenize(tokenIds: readonly number[]): Promise<string> {
    return this.#call("detokenize", { tokenIds });
  }

  /** What the engine is doing now, and counts since the load. Rejects only when the engine has ended. */
  stats(): Promise<EngineStats> {
    return this.#call("stats", {});
  }

  /** What was loaded; known since the load, and after `close` too. */
  describe(): ModelDescription {
    return this.#description;
  }

  /**
   * How well the model predicts a text, in windows without overlap. Rejects with ArgumentError for a window that does not fit the model's
   * context or a text of less than two tokens, or with the signal's reason.
   */
  evaluate(text: string, options: EvaluateOptions = {}): Promise<Evaluation> {
    return evaluateText(this, text, options);
  }

  /** Ends the worker and frees its memory; what is still running rejects. Calling it again changes nothing. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    if (this.#end === undefined) {
      const closed = new Promise<void>((resolve) => {
        this.#onClosed = resolve;
      });
      this.#channel.keepAlive(true);
      this.#channel.post({ type: "close" });
      this.#endAll(new KvasirError("the engine was closed"));
      const timer = setTimeout(() => this.#onClosed?.(), CLOSE_TIMEOUT_MS);
      await closed;
      clearTimeout(timer);
    }
    await this.#channel.close();
  }

  #call<Name extends keyof Calls>(name: Name, question: Calls[Name]["question"]): Promise<Calls[Name]["answer"]> {
    if (this.#end !== undefined) return Promise.reject(this.#end);
    const id = this.#nextId++;
    // Two casts: the compiler does not follow that a name belongs to its question, and the question to its answer. `Calls` says so, host.ts
    // does it.
    return new Promise<unknown>((resolve, reject) => {
      this.#calls.set(id, { resolve, reject });
      this.#updateKeepAlive();
      this.#channel.post({ type: "call", id, name, question } as ToWorker);
    }) as Promise<Calls[Name]["answer"]>;
  }

  #receive(message: FromWorker): void {
    switch (message.type) {
      case "chunks":
        for (const { id, chunk, isLast } of message.chunks) {
          const queue = this.#requests.get(id);
          queue?.push(chunk);
          if (!isLast) continue;
          this.#requests.delete(id);
          queue?.finish();
        }
        break;
      case "answer":
        this.#calls.get(message.id)?.resolve(message.answer);
        this.#calls.delete(message.id);
        break;
      case "failed": {
        const error = fromPlainError(message.error);
        this.#requests.get(message.id)?.fail(error);
        this.#requests.delete(message.id);
        this.#calls.get(message.id)?.reject(error);
        this.#calls.delete(message.id);
        break;
      }
      case "broken":
        this.#endAll(fromPlainError(message.error));
        break;
      case "closed":
        this.#onClosed?.();
        return;
    }
    this.#updateKeepAlive();
  }

  /** Everything pending ends with this error, and everything asked later. */
  #endAll(error: Error): void {
    this.#end ??= error;
    for (const queue of this.#requests.values()) queue.fail(error);
    for (const call of this.#calls.values()) call.reject(error);
    this.#requests.clear();
    this.#calls.clear();
    this.#updateKeepAlive();
  }

  /** An idle engine does not keep the process alive, a busy one does. */
  #updateKeepAlive(): void {
    if (this.#closing === undefined) this.#channel.keepAlive(this.#requests.size + this.#calls.size > 0);
  }
}

/** The stream of a request that could not begin. */
function failedQueue(error: unknown): ChunkQueue {
  const queue = new ChunkQueue(() => {});
  queue.fail(error);
  return queue;
}
