/** Calls and answers over a connection that comes back when it breaks. */
import type { WireError } from '../../src/protocol/errors.js';
import { EVENT_METHOD, type EventParams } from '../../src/protocol/events.js';
import { fromWire, ImgdError } from './errors.js';
import type { Dial, Wire } from './wire.js';

export interface ReconnectOptions {
  /** Milliseconds before the first attempt; doubled for each further one, up to `longest`. Default 100. */
  readonly first?: number;
  /** Default 5000. */
  readonly longest?: number;
  /** Attempts in a row before it is given up and the client is closed. Default: without end. */
  readonly attempts?: number;
}

export type ConnectionState = 'connected' | 'reconnecting' | 'closed';

export interface LinkOptions {
  /** False: the client closes when its connection breaks. */
  readonly reconnect?: ReconnectOptions | false;
  /** Told of each change, with the error that led to it. */
  readonly onState?: (state: ConnectionState, error?: ImgdError) => void;
}

/** What becomes of a call whose connection breaks before its answer: it fails, is made again, or becomes another. */
export type WhenLost = 'fail' | 'resend' | { readonly method: string; readonly params: object };

/** What can be done about a call that waits. */
export interface Sent {
  /** Takes it back where it has not been sent; tells whether it was. */
  withdraw(): boolean;
  /** Its answer does not count any more. */
  forget(): void;
}

interface Pending {
  readonly id: number;
  method: string;
  params: object;
  whenLost: WhenLost;
  /** Undefined: not sent yet. */
  sent: Wire | undefined;
  /** It stands for a call that was lost. */
  again: boolean;
  done(error: ImgdError | undefined, result: unknown): void;
}

interface Message {
  readonly id?: number | string | null;
  readonly result?: unknown;
  readonly error?: WireError;
  readonly method?: string;
  readonly params?: EventParams;
}

export class Link {
  readonly #dial: Dial;
  readonly #options: LinkOptions;
  readonly #pending = new Map<number, Pending>();
  #next = 1;
  #wire: Wire | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #attempts = 0;
  /** The daemon has answered on this connection or an earlier one. */
  #greeted = false;
  state: ConnectionState = 'reconnecting';
  onEvent: (params: EventParams) => void = () => undefined;
  /** The connection broke. */
  onLost: () => void = () => undefined;
  /** A connection is there, and nothing has been sent over it. */
  onConnected: () => void = () => undefined;
  /** It is over for good. */
  onClosed: (error: ImgdError) => void = () => undefined;

  constructor(dial: Dial, options: LinkOptions) {
    this.#dial = dial;
    this.#options = options;
  }

  /** The first connection: its failure is the caller's, and is not tried again. */
  async open(): Promise<void> {
    try {
      await this.#connect();
    } catch (error) {
      this.state = 'closed';
      throw error;
    }
  }

  send(
    method: string,
    params: object,
    whenLost: WhenLost,
    done: (error: ImgdError | undefined, result: unknown) => void,
  ): Sent {
    if (this.state === 'closed') {
      done(new ImgdError('closed', 'the client is closed'), undefined);
      return { withdraw: () => false, forget: () => undefined };
    }
    const id = this.#next++;
    const call: Pending = { id, method, params, whenLost, sent: undefined, again: false, done };
    this.#pending.set(id, call);
    this.#transmit(call);
    return {
      withdraw: () => call.sent === undefined && !call.again && this.#pending.delete(id),
      forget: () => void this.#pending.delete(id),
    };
  }

  /** `send` as a promise. Aborting rejects at once with the signal's reason. */
  call(method: string, params: object, whenLost: WhenLost, signal?: AbortSignal): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      const abort = (): void => {
        sent.forget();
        reject(signal!.reason);
      };
      const sent = this.send(method, params, whenLost, (error, result) => {
        signal?.removeEventListener('abort', abort);
        if (error === undefined) resolve(result);
        else reject(error);
      });
      signal?.addEventListener('abort', abort, { once: true });
    });
  }

  close(error = new ImgdError('closed', 'the client was closed')): void {
    if (this.state === 'closed') return;
    clearTimeout(this.#timer);
    const wire = this.#wire;
    this.#wire = undefined;
    this.#become('closed', error);
    wire?.close();
    const waiting = [...this.#pending.values()];
    this.#pending.clear();
    for (const call of waiting) call.done(error, undefined);
    this.onClosed(error);
  }

  #become(state: ConnectionState, error?: ImgdError): void {
    this.state = state;
    this.#options.onState?.(state, error);
  }

  #transmit(call: Pending): void {
    if (this.#wire === undefined || call.sent !== undefined) return;
    call.sent = this.#wire;
    const { id, method, params } = call;
    this.#wire.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }));
  }

  async #connect(): Promise<void> {
    let mine: Wire | undefined;
    const wire = await this.#dial({
      message: (text) => {
        if (mine === this.#wire) this.#receive(text);
      },
      closed: () => {
        if (mine !== undefined && mine === this.#wire) this.#lost();
      },
    });
    mine = wire;
    if (this.state === 'closed') {
      wire.close();
      return;
    }
    this.#wire = wire;
    this.#become('connected');
    this.onConnected();
    for (const call of [...this.#pending.values()]) this.#transmit(call);
  }

  #receive(text: string): void {
    let message: Message;
    try {
      message = JSON.parse(text) as Message;
    } catch {
      this.#lost();
      return;
    }
    if (message.error === undefined) {
      this.#greeted = true;
      this.#attempts = 0;
    }
    if (message.method === EVENT_METHOD && message.params !== undefined) {
      this.onEvent(message.params);
      return;
    }
    const { id, error, result } = message;
    if (typeof id !== 'number') {
      // An error without an id is about the connection (too many of them), or a message that cannot be told to a call.
      if (error !== undefined) this.#refused(fromWire(error));
      return;
    }
    const call = this.#pending.get(id);
    if (call === undefined) return;
    this.#pending.delete(id);
    if (error === undefined) call.done(undefined, result);
    else call.done(call.again ? unknownOutcome(error, call) : fromWire(error), undefined);
  }

  /** The daemon could not read a message, or does not want the connection: none of the calls that were sent is sure of an answer. */
  #refused(error: ImgdError): void {
    // Too many only now, when it comes back: the close that follows makes it try again.
    if (this.#greeted && error.kind === 'too-many-connections') return;
    for (const [id, call] of [...this.#pending]) {
      if (call.sent === undefined) continue;
      this.#pending.delete(id);
      call.done(error, undefined);
    }
  }

  #lost(): void {
    const wire = this.#wire;
    this.#wire = undefined;
    wire?.close();
    this.onLost();
    const { reconnect } = this.#options;
    const error = new ImgdError('connection-lost', 'the connection to the daemon was lost');
    if (reconnect === false) {
      this.close(error);
      return;
    }
    this.#become('reconnecting', error);
    for (const [id, call] of [...this.#pending]) {
      if (call.sent === undefined) continue;
      const { whenLost } = call;
      call.sent = undefined;
      if (whenLost === 'fail') {
        this.#pending.delete(id);
        call.done(error, undefined);
      } else if (whenLost !== 'resend') {
        Object.assign(call, { ...whenLost, whenLost: 'resend', again: true });
      }
    }
    this.#retry(error);
  }

  #retry(last: ImgdError): void {
    const {
      first = 100,
      longest = 5000,
      attempts = Number.POSITIVE_INFINITY,
    } = {
      ...(this.#options.reconnect || {}),
    };
    if (this.#attempts >= attempts) {
      this.close(last);
      return;
    }
    // Half of it by chance, so that many clients of one daemon do not all come at once.
    const pause = Math.min(longest, first * 2 ** Math.min(this.#attempts, 30)) * (0.5 + Math.random() / 2);
    this.#attempts++;
    this.#timer = setTimeout(() => {
      const attempts = this.#attempts;
      this.#connect().catch((error: unknown) => {
        if (this.state === 'closed') return;
        this.#attempts = attempts;
        const failure =
          error instanceof ImgdError
            ? error
            : new ImgdError('connection-failed', String(error), { cause: error });
        if (failure.kind === 'forbidden') this.close(failure);
        else this.#retry(failure);
      });
    }, pause);
  }
}

/** A job that the daemon does not know after a break: it is not said whether it never came there, or came and went. */
function unknownOutcome(error: WireError, { params }: Pending): ImgdError {
  if (error.data?.kind !== 'job-not-found') return fromWire(error);
  const { id } = params as { id?: string };
  return new ImgdError(
    'connection-lost',
    `the connection to the daemon was lost, and it does not know job '${id}' any more: what became of it is not known`,
    id === undefined ? {} : { job: id },
  );
}
