/** QMP connections for tests, as plain bytes: to imgd, and to the reference's storage daemon. */
import { spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished } from 'vitest';
import { reference } from '../../support/reference.js';
import { type RunningDaemon, sleep, startDaemon } from './daemon.js';

// biome-ignore lint/suspicious/noExplicitAny: tests look into replies of many shapes
export type Reply = Record<string, any>;

export class QmpPeer {
  readonly socket: Socket;
  /** Lines so far, without their ends. */
  readonly lines: string[] = [];
  raw = '';
  readonly closed: Promise<void>;
  #rest = '';
  #next = 1;
  readonly #watchers = new Set<() => void>();

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.raw += chunk.toString();
      const lines = (this.#rest + chunk.toString()).split('\r\n');
      this.#rest = lines.pop()!;
      this.lines.push(...lines);
      for (const watcher of this.#watchers) watcher();
    });
    socket.on('error', () => undefined);
    this.closed = new Promise((done) => socket.on('close', () => done()));
  }

  static async connect(path: string): Promise<QmpPeer> {
    for (let tries = 0; ; tries++) {
      const socket = connect(path);
      const opened = await new Promise<boolean>((done) => {
        socket.once('connect', () => done(true));
        socket.once('error', () => done(false));
      });
      if (opened) {
        onTestFinished(() => void socket.destroy());
        return new QmpPeer(socket);
      }
      if (tries > 100) throw new Error(`nobody serves ${path}`);
      // The reference says nothing when it has begun to listen.
      await sleep(20);
    }
  }

  /** A connection that has negotiated. */
  static async ready(path: string, enable: readonly string[] = []): Promise<QmpPeer> {
    const peer = await QmpPeer.connect(path);
    await peer.call('qmp_capabilities', { enable });
    return peer;
  }

  write(bytes: string | Uint8Array): void {
    this.socket.write(bytes);
  }

  async call(command: string, given?: object, how: 'execute' | 'exec-oob' = 'execute'): Promise<Reply> {
    const id = `call-${this.#next++}`;
    this.write(JSON.stringify({ [how]: command, ...(given === undefined ? {} : { arguments: given }), id }));
    return this.until((reply) => reply.id === id);
  }

  /** The result of a command that must succeed. */
  async ok(command: string, given?: object): Promise<Reply> {
    const reply = await this.call(command, given);
    if (reply.error !== undefined) throw new Error(`${command}: ${JSON.stringify(reply.error)}`);
    return reply.return as Reply;
  }

  /** The first line, at or after number `from`, that is as wanted. */
  until(wanted: (reply: Reply) => boolean, from = 0): Promise<Reply> {
    return new Promise((done, fail) => {
      let at = from;
      const timer = setTimeout(() => {
        this.#watchers.delete(watcher);
        fail(new Error(`nothing came; the last lines: ${this.lines.slice(-5).join('\n')}`));
      }, 20_000);
      const watcher = (): void => {
        for (; at < this.lines.length; at++) {
          const reply = JSON.parse(this.lines[at]!) as Reply;
          if (!wanted(reply)) continue;
          clearTimeout(timer);
          this.#watchers.delete(watcher);
          done(reply);
          return;
        }
      };
      this.#watchers.add(watcher);
      watcher();
    });
  }

  status(job: string, status: string): Promise<Reply> {
    return this.until(
      ({ event, data }) => event === 'JOB_STATUS_CHANGE' && data.id === job && data.status === status,
    );
  }

  /** What is sent for `bytes`, until the answer to a command that is sent after them. */
  async exchange(bytes: string | Uint8Array): Promise<string[]> {
    const from = this.lines.length;
    const id = `after-${this.#next++}`;
    this.write(bytes);
    this.write(`{"execute": "query-version", "id": "${id}"}`);
    await this.until((reply) => reply.id === id, from);
    return this.lines.slice(from).filter((line) => !line.includes(`"id": "${id}"`));
  }
}

/** Starts qemu-storage-daemon with a QMP monitor on `socket`; it is ended with the test. */
export function startStorageDaemon(socket: string): void {
  const child = spawn(
    reference.qemuStorageDaemon!,
    ['--chardev', `socket,path=${socket},server=on,wait=off,id=c`, '--monitor', 'c'],
    { stdio: 'ignore' },
  );
  onTestFinished(() => void child.kill('SIGKILL'));
}

export type Work = (peer: QmpPeer, at: (file: string) => string) => Promise<unknown>;

/** The same work with the reference's daemon and with ours, each in a folder of its own: what it gives must be the same. */
export async function besideReference(folder: string, name: string, work: Work): Promise<void> {
  const results: unknown[] = [];
  for (const side of ['theirs', 'ours']) {
    const own = join(folder, `${name}-${side}`);
    mkdirSync(own);
    const socket = join(own, 'q.sock');
    if (side === 'theirs') startStorageDaemon(socket);
    else await startDaemon(join(own, 'j.sock'), ['--qmp-socket', socket], { real: true });
    const peer = await QmpPeer.connect(socket);
    results.push(await work(peer, (file) => join(own, file)));
    peer.socket.destroy();
  }
  expect(JSON.stringify(results[1], undefined, 1)).toBe(JSON.stringify(results[0], undefined, 1));
}

/** Commands in turn: each with the result, or the error's text. */
export async function inTurn(
  peer: QmpPeer,
  script: readonly (readonly [string, object])[],
): Promise<unknown[]> {
  const seen: unknown[] = [];
  for (const [command, given] of script) {
    const reply = await peer.call(command, given);
    seen.push([command, given, reply.error?.desc ?? reply.return]);
  }
  return seen;
}

/** Without what differs from one run or version to the next. */
export function normal(line: string): string {
  return line
    .replace(/"package": "[^"]*"/g, '"package": ""')
    .replace(/"(seconds|microseconds)": \d+/g, '"$1": 0');
}

export interface Served {
  readonly daemon: RunningDaemon;
  readonly socket: string;
  /** Path of a scratch file. */
  readonly at: (name: string) => string;
}

let daemons = 0;

/** A daemon with a QMP socket. */
export async function serveQmp(folder: string, flags: readonly string[] = []): Promise<Served> {
  const name = String(++daemons);
  const socket = join(folder, `${name}.qmp`);
  const daemon = await startDaemon(join(folder, `${name}.sock`), ['--qmp-socket', socket, ...flags], {
    real: true,
  });
  return { daemon, socket, at: (file) => join(folder, `${name}-${file}`) };
}

export async function createFile(qmp: QmpPeer, id: string, filename: string, size: number): Promise<void> {
  await qmp.ok('blockdev-create', { 'job-id': id, options: { driver: 'file', filename, size } });
  await qmp.status(id, 'concluded');
}

/** A held image, made over QMP alone. */
export async function holdImage(qmp: QmpPeer, filename: string, node = 'disk'): Promise<void> {
  await createFile(qmp, 'file', filename, 0);
  await qmp.ok('job-dismiss', { id: 'file' });
  await qmp.ok('blockdev-add', { driver: 'file', filename, 'node-name': `${node}-file` });
  const options = { driver: 'qcow2', file: `${node}-file`, size: 64 * 2 ** 20, 'cluster-size': 65536 };
  await qmp.ok('blockdev-create', { 'job-id': 'image', options });
  await qmp.status('image', 'concluded');
  await qmp.ok('job-dismiss', { id: 'image' });
  await qmp.ok('blockdev-add', { driver: 'qcow2', file: `${node}-file`, 'node-name': node });
}
