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
   * request: ArgumentError, CapacityError, LogitsError, DeviceError, or the signal's reason. Leaving the loop cancels the request.
   */
  generate(request: GenerateRequest): AsyncIterableIterator<GenerateChunk> {
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

  /** The tokens of a prompt as `generate` would compute it. */
  tokenize(prompt: Prompt, options: TokenizeOptions = {}): Promise<number[]> {
    return this.#call("tokenize", { prompt, options });
  }

  /** The text of tokens, special ones by name. */
  detokenize(tokenIds: readonly number[]): Promise<string> {
    return this.#call("detokenize", { tokenIds });
  }

  stats(): Promise<EngineStats> {
    return this.#call("stats", {});
  }

  describe(): ModelDescription {
    return this.#description;
  }

  /** How well the model predicts a text, in windows without overlap. */
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
    return new Promise<unknown>((resolve, reject) => {
      this.#calls.set(id, { resolve, reject });
      this.#updateKeepAlive();
      // The compiler does not follow that name and question, and question and answer, belong together: `Calls` says so, host.ts does it.
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
