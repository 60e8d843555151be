/** Starts daemons for tests, real or with fake operations, and talks to them line by line. */
import { type ChildProcess, spawn } from 'node:child_process';
import { connect, type Socket } from 'node:net';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { onTestFinished } from 'vitest';
import type { EventParams } from '../../../src/protocol/events.js';
import { LineSplitter } from '../../../src/protocol/framing.js';

/** Where the compiled project is: workers cannot be started from TypeScript. */
export const dist = resolve(process.env.IMGD_DIST ?? 'dist');

const fakeMain = fileURLToPath(new URL('./fake-daemon.mjs', import.meta.url));
export const realMain = join(dist, 'src/daemon/main.js');

export interface RunningDaemon {
  readonly process: ChildProcess;
  readonly socket: string;
  /** The log so far. */
  log(): Record<string, unknown>[];
  stderr(): string;
  /** Exit code, or the signal's name. */
  readonly exited: Promise<number | string | null>;
}

/** Starts a daemon on `socket` and waits until it serves or ends. It is killed when the test is over. */
export async function startDaemon(
  socket: string,
  flags: readonly string[] = [],
  options: { readonly real?: boolean } = {},
): Promise<RunningDaemon> {
  const child = spawn(
    process.execPath,
    [options.real ? realMain : fakeMain, '--socket', socket, '--log-level', 'debug', ...flags],
    { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, IMGD_DIST: dist } },
  );
  let stderr = '';
  const exited = new Promise<number | string | null>((done) => {
    // Not `exit`: the last of the log may still be in the pipe.
    child.on('close', (code, signal) => done(code ?? signal));
  });
  try {
    onTestFinished(() => void child.kill('SIGKILL'));
  } catch {
    // started in beforeAll: whoever started it ends it
  }
  await new Promise<void>((done) => {
    child.stderr!.on('data', (chunk: Buffer) => {
      stderr += chunk.toString();
      if (stderr.includes('"msg":"listening"')) done();
    });
    void exited.then(() => done());
  });
  const log = (): Record<string, unknown>[] =>
    stderr
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  return { process: child, socket, log, stderr: () => stderr, exited };
}

export interface Answer {
  readonly id?: unknown;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into results of many shapes
  readonly result?: any;
  readonly error?: { code: number; message: string; data?: Record<string, unknown> };
  readonly method?: string;
  readonly params?: EventParams;
}

/** A connection that speaks plain lines, with nothing of the project's own client in between. */
export class Peer {
  readonly socket: Socket;
  /** All that came, in order. */
  readonly received: (Answer | Answer[])[] = [];
  readonly closed: Promise<void>;
  #next = 1;
  readonly #watchers = new Set<() => void>();

  constructor(socket: Socket) {
    this.socket = socket;
    const splitter = new LineSplitter(64 * 1024 * 1024);
    socket.on('data', (chunk) => {
      for (const frame of splitter.push(chunk)) {
        if (frame.kind === 'line') this.received.push(JSON.parse(frame.text) as Answer);
      }
      for (const watcher of this.#watchers) watcher();
    });
    socket.on('error', () => undefined);
    this.closed = new Promise((done) => socket.on('close', () => done()));
    this.closed.then(() => {
      for (const watcher of this.#watchers) watcher();
    });
  }

  static async connect(path: string): Promise<Peer> {
    const socket = connect(path);
    await new Promise<void>((done, fail) => {
      socket.once('connect', done);
      socket.once('error', fail);
    });
    const peer = new Peer(socket);
    try {
      onTestFinished(() => void socket.destroy());
    } catch {
      // outside of a test
    }
    return peer;
  }

  write(text: string): void {
    this.socket.write(text);
  }

  /** Sends a request and returns its id. */
  send(method: string, params?: unknown): number {
    const id = this.#next++;
    this.write(
      `${JSON.stringify({ jsonrpc: '2.0', id, method, ...(params === undefined ? {} : { params }) })}\n`,
    );
    return id;
  }

  async call(method: string, params?: unknown): Promise<Answer> {
    const id = this.send(method, params);
    return this.answer(id);
  }

  answer(id: unknown): Promise<Answer> {
    return this.until(() => {
      const found = this.received.find((each) => !Array.isArray(each) && each.id === id);
      return found as Answer | undefined;
    });
  }

  /** Waits until `look` finds something. */
  until<T>(look: () => T | undefined, ms = 20_000): Promise<T> {
    return new Promise((done, fail) => {
      const timer = setTimeout(() => {
        this.#watchers.delete(watcher);
        fail(new Error(`nothing came within ${ms} ms; so far: ${JSON.stringify(this.received.slice(-5))}`));
      }, ms);
      const watcher = (): void => {
        const found = look();
        if (found === undefined) return;
        clearTimeout(timer);
        this.#watchers.delete(watcher);
        done(found);
      };
      this.#watchers.add(watcher);
      watcher();
    });
  }

  /** Events so far, of one name if given. */
  events(name?: string): EventParams[] {
    return this.received
      .filter((each): each is Answer => !Array.isArray(each) && each.method === 'event')
      .map((each) => each.params!)
      .filter((params) => name === undefined || params.event === name);
  }

  /** Waits for a job's state. */
  status(job: string, status: string): Promise<EventParams> {
    return this.until(() =>
      this.events('JOB_STATUS_CHANGE').find((each) => {
        const data = each.data as { id: string; status: string };
        return data.id === job && data.status === status;
      }),
    );
  }
}

/** Params of the fake operation `verb`. */
export function fake(verb: string, job?: Record<string, unknown>): Record<string, unknown> {
  return { image: { filename: verb }, ...(job === undefined ? {} : { job }) };
}

export const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));
