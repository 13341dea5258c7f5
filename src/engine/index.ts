/**
 * The engine: requests in, streamed tokens out, many at a time over one paged cache. `Engine` is the door; the core, its scheduler and the
 * sampler are there for those who bring their own model or transport.
 */

export type { EngineBackend, EngineTokenizer, LoadBackend } from "./backend.ts";
export { type Channel, type ChannelListener, channelPair } from "./channel.ts";
export { Engine } from "./engine.ts";
export {
  EngineCore,
  type EngineCoreOptions,
  type EngineCoreStats,
  type StepOutput,
  type StepResult,
} from "./engineCore.ts";
export type { EvaluateOptions } from "./evaluate.ts";
export { serveEngine } from "./host.ts";
export { logprobsOf, logSumExp } from "./logprobs.ts";
export type { FromWorker, TokenizeOptions, ToWorker } from "./messages.ts";
export { uniformAt } from "./random.ts";
export type { EngineRequest } from "./request.ts";
export type { LogitsBatch, ModelRunner, RaggedBatch, SampledToken, Sampler } from "./runner.ts";
export { type Draw, LogitsError, TokenSampler } from "./sampler.ts";
export { resolveSampling } from "./samplingParams.ts";
export type {
  ChatMessage,
  Completion,
  EngineStats,
  Evaluation,
  FinishReason,
  GenerateChunk,
  GenerateRequest,
  LoadOptions,
  LoadProgress,
  Logprobs,
  ModelDescription,
  ModelFiles,
  Prompt,
  Sample,
  SamplingOptions,
  SamplingParams,
  Timing,
  TokenLogprob,
  Usage,
} from "./types.ts";
