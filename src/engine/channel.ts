/**
 * The wire between an engine's handle and the place where it runs: a worker thread of Node, a Web Worker, or the same thread. Only
 * plain data goes over it. What the messages mean is in messages.ts.
 */

import { DeviceError } from "../tensor/errors.ts";

/** What an end of a channel hears. */
export interface ChannelListener<Message> {
  message(message: Message): void;
  /** The other side is gone, at most once and for ever; the error says why. Not called after `close`. */
  ended(error: Error): void;
}

/** One end of a channel. */
export interface Channel<Incoming, Outgoing> {
  post(message: Outgoing): void;
  /** Messages that arrived before are delivered then. To be called once. */
  listen(listener: ChannelListener<Incoming>): void;
  /** Whether the channel keeps the process from ending by itself. */
  keepAlive(isNeeded: boolean): void;
  /** Ends the other side, whatever it is doing. */
  close(): Promise<void>;
}

/** Two ends in the same thread. Messages are copied as between threads, so that nothing but plain data gets through. */
export function channelPair<Left, Right>(): [Channel<Left, Right>, Channel<Right, Left>] {
  const left = new LocalEnd<Left, Right>();
  const right = new LocalEnd<Right, Left>();
  left.other = right;
  right.other = left;
  return [left, right];
}

class LocalEnd<Incoming, Outgoing> implements Channel<Incoming, Outgoing> {
  other: LocalEnd<Outgoing, Incoming> | undefined;
  #listener: ChannelListener<Incoming> | undefined;
  #early: Incoming[] = [];
  #isClosed = false;

  post(message: Outgoing): void {
    const copy = structuredClone(message);
    queueMicrotask(() => this.other?.receive(copy));
  }

  receive(message: Incoming): void {
    if (this.#isClosed) return;
    if (this.#listener === undefined) this.#early.push(message);
    else this.#listener.message(message);
  }

  listen(listener: ChannelListener<Incoming>): void {
    this.#listener = listener;
    for (const message of this.#early.splice(0)) listener.message(message);
  }

  keepAlive(): void {}

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.other?.end();
  }

  end(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#listener?.ended(new DeviceError("the other end of the channel was closed"));
  }
}
