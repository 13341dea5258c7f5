/** What an engine's handle and its worker say to each other: plain data, one type per direction. */

import { ArgumentError, CapacityError, DeviceError, FormatError, KvasirError, ShapeError } from "../tensor/errors.ts";
import { LogitsError } from "./sampler.ts";
import type {
  EngineStats,
  GenerateChunk,
  GenerateRequest,
  LoadOptions,
  LoadProgress,
  ModelDescription,
  ModelFiles,
  Prompt,
} from "./types.ts";

/** `GenerateRequest` and `LoadOptions` without what cannot be sent. */
export type PlainRequest = Omit<GenerateRequest, "signal">;
export type PlainLoadOptions = Omit<LoadOptions, "signal" | "onProgress" | "worker">;

/** Questions with one answer each. */
export interface Calls {
  tokenize: { question: { prompt: Prompt; options: TokenizeOptions }; answer: number[] };
  detokenize: { question: { tokenIds: readonly number[] }; answer: string };
  stats: { question: Record<string, never>; answer: EngineStats };
}

/** How a prompt becomes tokens. */
export type TokenizeOptions = Pick<GenerateRequest, "parseSpecialTokens" | "templateVariables">;

/** A question on its way: one member for each entry of `Calls`. */
export type CallMessage = {
  [Name in keyof Calls]: {
    readonly type: "call";
    readonly id: number;
    readonly name: Name;
    readonly question: Calls[Name]["question"];
  };
}[keyof Calls];

/** From the handle to the worker. `id` names a request or a call until it is answered. */
export type ToWorker =
  | { readonly type: "load"; readonly model: string | ModelFiles; readonly options: PlainLoadOptions }
  | { readonly type: "generate"; readonly id: number; readonly request: PlainRequest }
  | { readonly type: "cancel"; readonly id: number }
  | CallMessage
  | { readonly type: "close" };

/** What a step added to one request. */
export interface ChunkOfRequest {
  readonly id: number;
  readonly chunk: GenerateChunk;
  /** Ends the request. */
  readonly isLast: boolean;
}

/** From the worker to the handle. */
export type FromWorker =
  | { readonly type: "progress"; readonly progress: LoadProgress }
  | { readonly type: "loaded"; readonly description: ModelDescription }
  /** All that one step produced. */
  | { readonly type: "chunks"; readonly chunks: readonly ChunkOfRequest[] }
  | { readonly type: "answer"; readonly id: number; readonly answer: unknown }
  | { readonly type: "failed"; readonly id: number; readonly error: PlainError }
  /** The load has failed, or the engine can do no more: every request and call ends with this error. */
  | { readonly type: "broken"; readonly error: PlainError }
  | { readonly type: "closed" };

/** An error as it goes over the wire; its class survives if it is one of ours. */
export interface PlainError {
  readonly name: string;
  readonly message: string;
  readonly stack?: string;
}

/** An error as plain data. What is no Error is turned into its text. */
export function toPlainError(error: unknown): PlainError {
  if (!(error instanceof Error)) return { name: "Error", message: String(error) };
  return { name: error.name, message: error.message, ...(error.stack === undefined ? {} : { stack: error.stack }) };
}

const ERROR_CLASSES = { ArgumentError, CapacityError, DeviceError, FormatError, KvasirError, LogitsError, ShapeError };

/** The error again, of its own class where that is one of ours, else an Error. */
export function fromPlainError({ name, message, stack }: PlainError): Error {
  // `hasOwn` has just found it: what TypeScript does not conclude from it.
  const ErrorClass = Object.hasOwn(ERROR_CLASSES, name) ? ERROR_CLASSES[name as keyof typeof ERROR_CLASSES] : Error;
  const error = new ErrorClass(message);
  if (stack !== undefined) error.stack = stack;
  return error;
}
