/** A connection to a daemon, for a command at a shell. */
import { lstatSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import type { CommandName } from '../../protocol/commands/index.js';
import type { WireError } from '../../protocol/errors.js';
import type { EventParams } from '../../protocol/events.js';
import { LineSplitter } from '../../protocol/framing.js';

/** One line for the user. */
export class ShellError extends Error {
  /** Nobody serves the socket. */
  readonly absent: boolean;
  constructor(message: string, absent = false) {
    super(message);
    this.absent = absent;
  }
}

/** More than any answer has. */
const MAX_LINE = 256 * 1024 * 1024;

interface Message {
  readonly id?: number | null;
  readonly result?: unknown;
  readonly error?: WireError;
  readonly method?: string;
  readonly params?: EventParams;
}

/** A socket in the usual place that neither the user nor root has made is somebody's trap. One that the user names is not. */
function checkOwner(path: string): void {
  const uid = process.getuid?.();
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined || uid === undefined || found.uid === uid || found.uid === 0) return;
  throw new ShellError(
    `the socket ${path} belongs to another user (${found.uid}): name it with --socket to use it`,
  );
}

export class Client {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, { done(result: unknown): void; fail(error: Error): void }>();
  readonly #onEvent: (params: EventParams) => void;
  #next = 1;
  /** Rejects when the connection ends. */
  readonly ended: Promise<never>;

  private constructor(socket: Socket, onEvent: (params: EventParams) => void) {
    this.#socket = socket;
    this.#onEvent = onEvent;
    const splitter = new LineSplitter(MAX_LINE);
    socket.on('data', (chunk) => {
      for (const frame of splitter.push(chunk)) {
        if (frame.kind === 'line') this.#received(JSON.parse(frame.text) as Message);
      }
    });
    this.ended = new Promise((_, fail) => {
      socket.on('error', () => undefined);
      socket.on('close', () => {
        const error = new ShellError('the connection to the daemon was lost');
        for (const { fail: failed } of this.#waiting.values()) failed(error);
        fail(error);
      });
    });
    this.ended.catch(() => undefined);
  }

  /** @param named by the user, as opposed to the place where a socket usually is. */
  static async connect(
    path: string,
    named: boolean,
    onEvent: (params: EventParams) => void = () => undefined,
  ): Promise<Client> {
    if (!named) checkOwner(path);
    const socket = createConnection(path);
    await new Promise<void>((done, fail) => {
      socket.once('connect', done);
      socket.once('error', (error: NodeJS.ErrnoException) => {
        const { code = '' } = error;
        const absent = code === 'ENOENT' || code === 'ECONNREFUSED';
        fail(new ShellError(absent ? `no daemon at ${path}` : `cannot connect to ${path}: ${code}`, absent));
      });
    });
    return new Client(socket, onEvent);
  }

  call(method: CommandName, params: object = {}): Promise<unknown> {
    const id = this.#next++;
    return new Promise((done, fail) => {
      this.#waiting.set(id, { done, fail });
      this.#socket.write(`${JSON.stringify({ jsonrpc: '2.0', id, method, params })}\n`);
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #received({ id, result, error, method, params }: Message): void {
    if (method !== undefined) {
      if (params !== undefined) this.#onEvent(params);
      return;
    }
    // An error without an id is about the connection: it is refused.
    const waiting = [...this.#waiting].filter(([each]) => id === null || each === id);
    for (const [each, { done, fail }] of waiting) {
      this.#waiting.delete(each);
      if (error === undefined) done(result);
      else fail(new ShellError(error.message));
    }
  }
}
