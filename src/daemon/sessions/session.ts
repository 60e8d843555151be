/** One connection: what it has asked for and what it is still to be told. */

import { wireError } from '../../protocol/errors.js';
import type { Role } from '../../protocol/roles.js';
import type { Transport, TransportEvents } from '../listeners/transport.js';
import type { Subscription } from './events.js';
import { Outbox } from './outbox.js';

/** Answers that may wait before no more calls are read from the connection. */
const ANSWER_BYTES = 256 * 1024;

export class Session implements TransportEvents {
  readonly id: number;
  readonly transport: Transport;
  readonly outbox: Outbox;
  readonly subscriptions = new Map<string, Subscription>();
  /** Calls that are not answered yet. */
  calls = 0;
  /** Those among them that wait for a job. */
  waiting = 0;
  #holds = 0;
  #receive: (session: Session, text: string) => void;
  readonly #onClosed = new Set<() => void>();
  readonly #onGone = new Set<() => void>();
  #closed = false;
  #halfClosed = false;
  #finishing = false;
  #paused = false;

  constructor(id: number, transport: Transport, receive: (session: Session, text: string) => void) {
    this.id = id;
    this.transport = transport;
    this.#receive = receive;
    this.outbox = new Outbox(transport, () => this.#settle());
  }

  get role(): Role {
    return this.transport.role;
  }

  /** The client still listens, as far as one can know. A peer that has sent its last may be gone altogether. */
  get listening(): boolean {
    return !this.#closed && !this.#halfClosed;
  }

  /** Returns how to take the callback back. */
  onClosed(callback: () => void): () => void {
    if (this.#closed) callback();
    else this.#onClosed.add(callback);
    return () => this.#onClosed.delete(callback);
  }

  /**
   * Called when the peer has sent its last, which is all that a socket shows of a client that was killed: earlier than
   * `onClosed` where it is still owed answers.
   */
  onGone(callback: () => void): () => void {
    if (this.listening) this.#onGone.add(callback);
    else callback();
    return () => this.#onGone.delete(callback);
  }

  /** Sends an answer (to one call or to a batch). */
  answer(text: string): void {
    this.outbox.push({ text: () => text, bytes: text.length });
    if (this.outbox.bytes > ANSWER_BYTES && !this.#paused) {
      this.#paused = true;
      this.transport.pause();
    }
  }

  callStarted(): void {
    this.calls++;
  }

  callEnded(): void {
    this.calls--;
    this.#settle();
  }

  /** Keeps a half-closed connection open until `release`: a batch is answered after its last call. */
  hold(): void {
    this.#holds++;
  }

  release(): void {
    this.#holds--;
    this.#settle();
  }

  message(text: string): void {
    this.#receive(this, text);
  }

  malformed(kind: 'invalid-utf8' | 'too-long' | 'not-text', fatal: boolean): void {
    const error =
      kind === 'too-long'
        ? wireError('message-too-long', 'the message is longer than the daemon accepts')
        : wireError('parse', kind === 'invalid-utf8' ? 'the message is not UTF-8' : 'messages are text');
    this.answer(JSON.stringify({ jsonrpc: '2.0', id: null, error }));
    if (fatal) this.transport.end();
  }

  drained(): void {
    this.outbox.drained();
    if (this.#paused && this.outbox.bytes <= ANSWER_BYTES) {
      this.#paused = false;
      this.transport.resume();
    }
  }

  /** Lets the connection go once everything has been sent. */
  finish(): void {
    this.#finishing = true;
    this.#settle();
  }

  halfClosed(): void {
    this.#halfClosed = true;
    this.#gone();
    this.#settle();
  }

  closed(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#gone();
    for (const subscription of [...this.subscriptions.values()]) subscription.end();
    this.outbox.close();
    for (const callback of this.#onClosed) callback();
    this.#onClosed.clear();
  }

  #gone(): void {
    for (const callback of this.#onGone) callback();
    this.#onGone.clear();
  }

  /** A peer that sends nothing more is let go once it has had all its answers. */
  #settle(): void {
    if (!(this.#halfClosed || this.#finishing) || this.#closed || this.calls > 0 || this.#holds > 0) return;
    if (this.outbox.empty) this.transport.end();
  }
}
