/**
 * The engine's public types: what a caller passes in and gets back. Everything here except `signal` and `onProgress` is plain data
 * that survives a `postMessage`. How requests are scheduled is in scheduler.ts, how tokens are drawn in sampler.ts.
 */

/**
 * A model's files, for places without a file system (a page's file picker, a cache in the browser): `model.gguf`, or `config.json`,
 * `tokenizer.json` and `*.safetensors`.
 */
export type ModelFiles = readonly File[];

/** What is loaded at the moment, for a progress bar. `totalBytes` is 0 while it is not yet known. */
export interface LoadProgress {
  readonly stage: "download" | "read" | "prepare";
  readonly loadedBytes: number;
  readonly totalBytes: number;
}

/** How to load a model, and the sizes that stay fixed for the engine's life. */
export interface LoadOptions {
  /** Where the network runs. "auto" takes the fastest device that works here, today always the CPU. Default "auto". */
  readonly device?: "auto" | "cpu";
  /** Threads of the CPU device. Default: as many as the machine has cores. */
  readonly threads?: number;
  /** Capacity of the key/value cache in tokens, over all requests. Default 8,192. */
  readonly maxNumTokens?: number;
  /** Tokens in a cache page. Prefixes are shared by whole pages. Default 16. */
  readonly pageSize?: number;
  /** Element type of the cached keys and values. Default "f16". */
  readonly cacheType?: "f32" | "f16";
  /**
   * What quantised weights are multiplied with: activations as they are ("f32"), rounded to 16 bits in blocks of 32 ("int16", hardly
   * different from f32), or to 8 bits where the weights have no more than 6 ("int8", the fastest). Default "int8".
   */
  readonly activations?: "f32" | "int8" | "int16";
  /** Token budget of one step: longer prompts are computed in chunks of it. Default 512. */
  readonly maxNumBatchedTokens?: number;
  /** Sequences computed in one step; more wait in the queue. Default 32. */
  readonly maxNumSeqs?: number;
  /** Called while loading, several times a second. */
  readonly onProgress?: (progress: LoadProgress) => void;
  /** Aborts the loading; `Engine.load` then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** Whether the model runs in a worker of its own, so that the caller's event loop is never blocked. Default true; false is for tests. */
  readonly worker?: boolean;
}

/** One turn of a conversation, as chat templates take it. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
  /** Further fields that a model's template knows (`name`, `tool_calls`, ...). */
  readonly [field: string]: unknown;
}

/** Text (tokenised with the model's special tokens, such as its beginning token), token numbers as they are, or a conversation. */
export type Prompt = string | readonly number[] | readonly ChatMessage[];

/**
 * How tokens are drawn. The order is vLLM's: logit bias, repetition penalty, frequency and presence penalty, then either the largest
 * (temperature 0) or: temperature, min-p, top-k, top-p, and a draw. Ties are broken towards the lower token number.
 */
export interface SamplingOptions {
  /** Divides the logits. 0 takes the most likely token, and is the default: a call without options can be repeated. */
  readonly temperature?: number;
  /** Keeps the k most likely tokens. 0 keeps all. Default 0. */
  readonly topK?: number;
  /** Keeps the fewest most likely tokens whose probabilities (among those that top-k and min-p left) sum to topP. Default 1. */
  readonly topP?: number;
  /** Drops tokens less likely than minP times the most likely one. Default 0. */
  readonly minP?: number;
  /** Divides positive and multiplies negative logits of tokens in the prompt or the output (CTRL, Hugging Face). Default 1. */
  readonly repetitionPenalty?: number;
  /** Subtracted from the logit of every token that is in the output (OpenAI). Default 0. */
  readonly presencePenalty?: number;
  /** Subtracted from a token's logit once for each time it is in the output (OpenAI). Default 0. */
  readonly frequencyPenalty?: number;
  /** Added to the logits, by token number; -Infinity forbids a token. */
  readonly logitBias?: Readonly<Record<number, number>>;
  /**
   * An integer of up to 53 bits. The same seed draws the same tokens from the same logits, whatever else runs and even after a
   * preemption; sample i of a request has a stream of its own. Default: drawn at random.
   */
  readonly seed?: number;
}

/** `SamplingOptions` with the defaults filled in and checked, the ending tokens and the log-probabilities wanted: what the sampler reads. */
export interface SamplingParams {
  readonly temperature: number;
  /** 0 keeps all. */
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly logitBias: readonly { readonly tokenId: number; readonly bias: number }[];
  readonly seed: number;
  /** Tokens that end a sample, the model's own end tokens among them unless they are to be ignored. */
  readonly stopTokens: ReadonlySet<number>;
  /** How many of the most likely tokens to report beside the chosen one; undefined reports nothing. */
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
}

/** A request for one or more continuations of one prompt. */
export interface GenerateRequest extends SamplingOptions {
  readonly prompt: Prompt;
  /** Most tokens to generate, per sample. Default 256. */
  readonly maxTokens?: number;
  /** Samples of the same prompt, which is computed once and forked. Default 1. */
  readonly n?: number;
  /** Texts that end the generation; they are not part of the result, even when they span tokens. */
  readonly stop?: string | readonly string[];
  /** Tokens that end the generation, besides the model's own end tokens. */
  readonly stopTokens?: readonly number[];
  /** Generates past the model's end tokens. Default false. */
  readonly ignoreEos?: boolean;
  /**
   * Gives each token's natural-log probability and that of the `logprobs` most likely tokens (0: the chosen alone), of the raw logits:
   * before bias, penalties and temperature. Default: none.
   */
  readonly logprobs?: number;
  /** The same for the tokens of the prompt. They are computed anew, without the prefix cache. Default: none. */
  readonly promptLogprobs?: number;
  /** Cancels the request; the iteration then throws the signal's reason. */
  readonly signal?: AbortSignal;
  /** Requests share cached prefixes only with requests of the same salt. Default "": all share. */
  readonly cacheSalt?: string;
  /**
   * Recognises control tokens (`<end_of_turn>`) that a prompt given as text contains. Default false: a user's text cannot forge a turn.
   * A conversation's template writes them in any case.
   */
  readonly parseSpecialTokens?: boolean;
  /** Values for the chat template besides the messages (`tools`, `enable_thinking`, ...). Only with a conversation as prompt. */
  readonly templateVariables?: Readonly<Record<string, unknown>>;
}

/** A token with its natural-log probability. */
export interface TokenLogprob {
  readonly tokenId: number;
  readonly logprob: number;
}

/** The chosen token's log-probability, and the most likely tokens at that place, most likely first. */
export interface Logprobs extends TokenLogprob {
  readonly top: readonly TokenLogprob[];
}

/** Why a sample ended: a stop string, stop token or end token; `maxTokens` or the cache's capacity; or a cancellation. */
export type FinishReason = "stop" | "length" | "aborted";

/** Tokens counted so far for one sample. */
export interface Usage {
  readonly promptTokens: number;
  /** Tokens of the prompt that were found in the prefix cache and not computed. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

/** Times in seconds since the engine took the request, measured in its worker. */
export interface Timing {
  /** Until the first token of the sample. */
  readonly firstTokenSeconds: number;
  /** Until the last token so far. */
  readonly elapsedSeconds: number;
  /** Tokens after the first divided by the time since it; 0 before the second token. */
  readonly tokensPerSecond: number;
}

/** What one step added to one sample. */
export interface GenerateChunk {
  /** Which of the `n` samples. */
  readonly index: number;
  /** New text, possibly empty: bytes of an unfinished character and text that may become a stop string are held back. */
  readonly text: string;
  /** New tokens, the ending one (which has no text) included. */
  readonly tokenIds: readonly number[];
  /** One entry for each of `tokenIds`, when asked for. */
  readonly logprobs?: readonly Logprobs[];
  /** In the first chunk of sample 0, when asked for: entry i belongs to token i of the prompt; the first has none. */
  readonly promptLogprobs?: readonly (Logprobs | undefined)[];
  /** Set in the sample's last chunk. */
  readonly finishReason?: FinishReason;
  /** The stop string or token that ended the sample, when one did. */
  readonly stopReason?: string | number;
  readonly usage: Usage;
  readonly timing: Timing;
}

/** One whole sample. */
export interface Sample {
  readonly index: number;
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly logprobs?: readonly Logprobs[];
  readonly finishReason: FinishReason;
  readonly stopReason?: string | number;
  readonly usage: Usage;
  readonly timing: Timing;
}

/** A whole request: its samples by index, and the first one's text for the common case. */
export interface Completion {
  readonly text: string;
  readonly samples: readonly Sample[];
  readonly promptLogprobs?: readonly (Logprobs | undefined)[];
}

/** What the engine is doing and has done. Counters run from the load on. */
export interface EngineStats {
  readonly numRunning: number;
  readonly numWaiting: number;
  readonly numFinished: number;
  readonly numPages: number;
  /** Pages that a running request holds. */
  readonly usedPages: number;
  /** Pages that hold nothing. */
  readonly freePages: number;
  /** Pages that no request holds but whose prefix is kept until the page is needed. */
  readonly cachedPages: number;
  readonly pageSize: number;
  readonly cacheBytes: number;
  readonly usedCacheBytes: number;
  /** Tokens of prompts found in the prefix cache, and tokens of prompts in all. */
  readonly prefixHitTokens: number;
  readonly promptTokens: number;
  readonly generatedTokens: number;
  readonly numPreemptions: number;
  readonly numSteps: number;
  /** Seconds spent in steps, and tokens generated over that time. */
  readonly busySeconds: number;
  readonly tokensPerSecond: number;
}

/** What was loaded: enough for `kvasir inspect` and for a server's model list. */
export interface ModelDescription {
  readonly name: string;
  /** As the file names it: "llama", "gemma3", ... */
  readonly architecture: string;
  readonly numParameters: number;
  readonly weightBytes: number;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numAttentionHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Longest sequence the model was made for, in tokens. */
  readonly contextLength: number;
  /** Bytes that one token takes in the key/value cache, over all layers. */
  readonly cacheBytesPerToken: number;
  readonly hasChatTemplate: boolean;
  readonly eosTokenIds: readonly number[];
  /** The device and its threads, in words for people: "cpu, 2 threads, relaxed SIMD". */
  readonly device: string;
  readonly threads: number;
}

/** Result of `Engine.evaluate`. */
export interface Evaluation {
  /** Tokens of the text, and those that were predicted (the first of each window is not). */
  readonly numTokens: number;
  readonly numPredicted: number;
  readonly numBytes: number;
  /** Mean negative log-likelihood in nats per predicted token, and its exponential. */
  readonly meanNll: number;
  readonly perplexity: number;
  /** Bits per byte of the whole text's UTF-8. */
  readonly bitsPerByte: number;
  readonly seconds: number;
}
