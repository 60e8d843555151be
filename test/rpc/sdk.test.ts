/** The SDK against a daemon: calls, jobs, events, and what happens when the connection breaks. */
import { writeFileSync } from 'node:fs';
import { connect as connectSocket, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { WebSocket } from 'ws';
import { connect as connectInBrowser } from '../../clients/sdk/browser.js';
import {
  type Client,
  type ConnectOptions,
  connect,
  type EventGap,
  type ImgdError,
  isImgdError,
} from '../../clients/sdk/index.js';
import { tempDir } from '../support/reference.js';
import { type RunningDaemon, startDaemon } from './support/daemon.js';

const folder = tempDir();
const token = 'correct-horse-battery-staple';
const socket = join(folder, 'sdk.sock');
let daemon: RunningDaemon;
let url: string;

beforeAll(async () => {
  const file = join(folder, 'tokens');
  writeFileSync(file, `${token}\nanother-token-of-length watch\n`, { mode: 0o600 });
  daemon = await startDaemon(socket, ['--listen', '127.0.0.1:0', '--token-file', file]);
  url = (daemon.log().find((line) => line.msg === 'listening')!.addresses as string[])[1]!;
});
afterAll(() => void daemon.process.kill('SIGKILL'));

async function open(options: ConnectOptions = { socket }): Promise<Client> {
  const client = await connect(options);
  onTestFinished(() => client.close());
  return client;
}

/** The fake operation: see support/fake-engine.mjs. */
const fake = (verb: string) => ({ image: { filename: verb } });

async function failure(promise: Promise<unknown>): Promise<ImgdError> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!isImgdError(error)) throw new Error(`no ImgdError: ${String(error)}`);
  return error;
}

/** Passes connections on to the daemon until it is told to break them. */
class Relay {
  readonly path: string;
  readonly #server: Server;
  readonly #pairs = new Set<Socket>();
  /** Each line from the client, in order. */
  readonly lines: string[] = [];
  /** False: whoever comes is turned away. */
  open = true;
  target = socket;

  private constructor(path: string) {
    this.path = path;
    this.#server = createServer((from) => {
      from.on('error', () => undefined);
      if (!this.open) {
        from.destroy();
        return;
      }
      const to = connectSocket(this.target);
      to.on('error', () => from.destroy());
      for (const [a, b] of [
        [from, to],
        [to, from],
      ] as const) {
        this.#pairs.add(a);
        a.on('close', () => {
          this.#pairs.delete(a);
          b.destroy();
        });
        a.pipe(b);
      }
      from.on('data', (chunk: Buffer) => this.lines.push(...chunk.toString().trim().split('\n')));
    });
  }

  static async start(name: string): Promise<Relay> {
    const proxy = new Relay(join(folder, `${name}.sock`));
    await new Promise<void>((done) => proxy.#server.listen(proxy.path, done));
    onTestFinished(() => {
      proxy.break();
      proxy.#server.close();
    });
    return proxy;
  }

  break(): void {
    for (const each of this.#pairs) each.destroy();
  }

  called(method: string): number {
    return this.lines.filter((line) => (JSON.parse(line) as { method: string }).method === method).length;
  }
}

async function broken(client: Client, proxy: Relay): Promise<void> {
  proxy.open = false;
  proxy.break();
  while (client.state === 'connected') await new Promise((done) => setTimeout(done, 5));
}

const quick = { reconnect: { first: 10, longest: 50 } };

async function take<T>(from: AsyncIterable<T>, count: number): Promise<T[]> {
  const taken: T[] = [];
  for await (const each of from) if (taken.push(each) >= count) break;
  return taken;
}

describe('calls', () => {
  it('are methods by name, and know their types', async () => {
    const client = await open();
    expect(client.version).toMatch(/^\d+\./);
    const { version, qemu } = await client.queryVersion();
    expect(version).toBe(client.version);
    expect(qemu.major).toBeGreaterThan(0);
    expect(await client.ping()).toEqual({});
    const echo = (await client.imageCheck({ image: { filename: 'echo' }, cwd: '/tmp' })) as unknown;
    expect(echo).toMatchObject({ params: { image: { filename: 'echo' } }, cwd: '/tmp' });
    // @ts-expect-error no such member
    await failure(client.imageCheck({ image: { filename: 'echo' }, cwdd: '/tmp' }));
    // @ts-expect-error the params are needed
    await failure(client.call('image-check'));
  });

  it('fail with what the daemon says, in members', async () => {
    const client = await open();
    const error = await failure(client.imageCheck(fake('fail')));
    expect(error).toMatchObject({
      name: 'ImgdError',
      kind: 'no-space',
      class: 'GenericError',
      code: -32004,
      path: '/x/y.qcow2',
      offset: 65536,
      errno: 'ENOSPC',
      hint: 'make room',
      check: 'space',
      message: 'error while writing: No space left on device',
    });
    const wrong = await failure(client.call('image-check', { image: 5 } as never));
    expect(wrong).toMatchObject({ kind: 'invalid-params', member: 'image' });
  });

  it('cancel their job when aborted, and end when it has', async () => {
    const client = await open();
    const stop = new AbortController();
    const call = client.imageCheck(fake('steps:1000:1:10'), { signal: stop.signal, job: { id: 'aborted' } });
    const events = await client.subscribe({ job: 'aborted', events: ['JOB_STATUS_CHANGE'], since: 0 });
    for await (const { event, data } of events) {
      if (event === 'JOB_STATUS_CHANGE' && data.status === 'running') break;
    }
    stop.abort();
    expect((await failure(call)).kind).toBe('cancelled');
    expect((await client.queryJobs()).filter(({ id }) => id === 'aborted')).toEqual([]);
    await expect(client.ping({}, { signal: stop.signal })).rejects.toBe(stop.signal.reason);
  });

  it('reject where nobody is, or nobody who lets us in', async () => {
    expect(await failure(connect({ socket: join(folder, 'nobody') }))).toMatchObject({
      kind: 'connection-failed',
      message: expect.stringMatching(/nobody: ENOENT$/) as string,
    });
    const wrong = { url, token: 'this-is-not-the-token' };
    expect(await failure(connect(wrong))).toMatchObject({ kind: 'forbidden' });
    expect(await failure(connect({ socket, url }))).toMatchObject({ kind: 'invalid' });
    expect(await failure(connect({ url: 'http://x' }))).toMatchObject({ kind: 'invalid' });
  });

  it('tell what the role of a token does not allow', async () => {
    const client = await open({ url, token: 'another-token-of-length' });
    expect(await client.queryJobs()).toBeInstanceOf(Array);
    expect((await failure(client.imageCheck(fake('echo')))).kind).toBe('forbidden');
  });

  it('go over WebSocket, as Node and as a browser does', async () => {
    const node = await open({ url, token });
    expect(await node.imageCheck(fake('echo'))).toMatchObject({ cwd: expect.any(String) as string });
    const browser = await connectInBrowser({ url, token, WebSocket: WebSocket as never });
    onTestFinished(() => browser.close());
    const job = await browser.start('image-check', fake('steps:5:10:5'));
    const last = (await take(job.progress(), 1000)).at(-1);
    expect(last?.percent).toBe(100);
    expect(await job.result()).toMatchObject({ total: 50 });
    const none = connectInBrowser({ url, token: 'wrong-token-of-length', WebSocket: WebSocket as never });
    expect((await failure(none)).kind).toBe('connection-failed');
  });

  it('end when the client is closed', async () => {
    const client = await open();
    const call = client.imageCheck(fake('steps:20:1:10'));
    client.close();
    expect((await failure(call)).kind).toBe('closed');
    expect((await failure(client.ping())).kind).toBe('closed');
    expect(client.state).toBe('closed');
  });
});

describe('jobs', () => {
  it('tell their progress up to the end, and their result as often as one asks', async () => {
    const client = await open();
    const job = await client.start('image-check', fake('steps:40:10:10'));
    const seen: number[] = [];
    for await (const { percent, total } of job.progress()) {
      seen.push(percent);
      expect(total).toBe(400);
    }
    expect(seen.length).toBeGreaterThan(2);
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
    expect(seen.at(-1)).toBe(100);
    expect(job.concluded).toBe(true);
    const [one, two] = await Promise.all([job.result(), job.result()]);
    expect(one).toBe(two);
    // Told of late: there is still the last of it.
    expect(await take(job.progress(), 10)).toHaveLength(1);
  });

  it('pause, go on, change their speed and are cancelled', async () => {
    const client = await open();
    const events = await client.subscribe({ events: ['JOB_STATUS_CHANGE'], job: 'verbs' });
    const job = await client.start('image-check', fake('steps:1000:1000:5'), { job: { id: 'verbs' } });
    const until = async (wanted: string): Promise<void> => {
      for (;;) {
        const { value } = await reader.next();
        if (value?.data.status === wanted) return;
      }
    };
    const reader = events[Symbol.asyncIterator]();
    await until('running');
    await job.pause();
    await until('paused');
    // The job's own subscription may be told after this one.
    await client.ping();
    expect(job.status).toBe('paused');
    await job.resume();
    await until('running');
    await job.setSpeed(123_456);
    expect((await job.info()).speed).toBe(123_456);
    await job.cancel();
    expect((await failure(job.result())).kind).toBe('cancelled');
    for await (const _ of job.progress());
    expect(['concluded', 'null']).toContain(job.status);
    expect((await failure(job.pause())).kind).toBe('job-not-found');
  });

  it('say what they have to say', async () => {
    const client = await open();
    const job = await client.start('image-check', fake('lines:30:5'), { output: true });
    const said: string[] = [];
    for await (const output of job.output()) {
      if (output.stream !== 'entries')
        said.push(
          ...output.text
            .trim()
            .split('\n')
            .map((line) => `${output.stream} ${line}`),
        );
    }
    expect(said).toHaveLength(30);
    expect(said[9]).toBe('stderr 9....');
    const silent = await client.start('image-check', fake('lines:3:5'));
    expect((await failure(take(silent.output(), 1))).kind).toBe('invalid');
  });

  it('can be taken up by another client, and started twice under one id', async () => {
    const [one, two] = [await open(), await open()];
    const job = await one.start('image-check', fake('steps:30:10:10'), { job: { id: 'shared' } });
    const again = await two.start('image-check', fake('steps:30:10:10'), { job: { id: 'shared' } });
    const other = two.start('image-check', fake('steps:31:10:10'), { job: { id: 'shared' } });
    expect((await failure(other)).kind).toBe('job-exists');
    const taken = await two.job('shared');
    expect(taken.type).toBe('image-check');
    const last = (await take(taken.progress(), 1000)).at(-1);
    expect(last?.percent).toBe(100);
    expect(await again.result()).toEqual({ total: 300 });
    expect(job.id).toBe(taken.id);
    expect((await failure(two.job('nobody'))).kind).toBe('job-not-found');
  });

  it('that are over already are found over when they are started again', async () => {
    const client = await open();
    const start = () =>
      client.start('image-check', fake('steps:2:10:0'), { job: { id: 'kept', 'auto-dismiss': false } });
    const [one, two] = await Promise.all([start(), start()]);
    for (const job of [one, two]) for await (const _ of job.progress());
    const again = await start();
    for await (const _ of again.progress());
    expect(again.status).toBe('concluded');
    expect(await again.result()).toEqual({ total: 20 });
    await again.dismiss();
  });

  it('are cancelled by their signal, and not started by one that is aborted already', async () => {
    const client = await open();
    const stop = new AbortController();
    const job = await client.start('image-check', fake('steps:1000:1:10'), { signal: stop.signal });
    stop.abort();
    expect((await failure(job.result())).kind).toBe('cancelled');
    const late = client.start('image-check', fake('echo'), { signal: stop.signal });
    await expect(late).rejects.toBe(stop.signal.reason);
  });
});

describe('events', () => {
  it('are filtered by kind and job', async () => {
    const client = await open();
    const events = await client.subscribe({ events: ['JOB_STATUS_CHANGE'], job: 'heard' });
    await client.imageCheck(fake('echo'), { job: { id: 'unheard' } });
    await client.imageCheck(fake('echo'), { job: { id: 'heard' } });
    const states = (await take(events, 4)).map(({ data }) => `${data.id} ${data.status}`);
    expect(states).toEqual(['heard created', 'heard running', 'heard concluded', 'heard null']);
    expect((await client.queryStatus()).subscriptions).toBe(0);
  });

  it('are told anew from a number; too old a number is refused', async () => {
    const client = await open();
    const events = await client.subscribe({ events: ['JOB_STATUS_CHANGE'], since: 0 });
    const [first] = await take(events, 1);
    expect(first!.seq).toBeGreaterThan(0);
    const crowd = await client.subscribe({ events: ['JOB_STATUS_CHANGE'], job: 'crowd-511' });
    for (let n = 0; n < 512; n += 32) {
      const some = Array.from({ length: 32 }, (_, at) => {
        return client.imageCheck(fake('echo'), { job: { id: `crowd-${n + at}` } });
      });
      await Promise.all(some);
    }
    await take(crowd, 4);
    const error = await failure(client.subscribe({ since: 0 }));
    expect(error).toMatchObject({ kind: 'events-too-old', member: 'since' });
    expect(error.data!.oldest).toBeGreaterThan(1);
  });

  it('that nobody reads do not pile up', async () => {
    const client = await open();
    const gaps: EventGap[] = [];
    const told = await client.subscribe({ buffer: 5, onGap: (gap) => gaps.push(gap) });
    const untold = await client.subscribe({ buffer: 5 });
    for (let n = 0; n < 4; n++) await client.imageCheck(fake('echo'));
    await client.ping();
    expect(gaps[0]?.reason).toBe('overflow');
    const [next] = await take(told, 1);
    expect(next!.seq).toBeGreaterThan(gaps.at(-1)!.after);
    const error = await failure(take(untold, 100));
    expect(error).toMatchObject({ kind: 'events-lost', gap: { reason: 'overflow' } });
  });
});

describe('a connection that breaks', () => {
  it('comes back, and events go on where they stopped', async () => {
    const proxy = await Relay.start('replay');
    const client = await open({ socket: proxy.path, ...quick });
    const direct = await open();
    const events = await client.subscribe({ events: ['JOB_STATUS_CHANGE'] });
    await direct.imageCheck(fake('echo'), { job: { id: 'before' } });
    await client.ping();
    await broken(client, proxy);
    await direct.imageCheck(fake('echo'), { job: { id: 'while' } });
    const call = client.ping();
    proxy.open = true;
    await call;
    await direct.imageCheck(fake('echo'), { job: { id: 'after' } });
    const seen = (await take(events, 12)).map(({ data }) => `${data.id} ${data.status}`);
    const states = ['created', 'running', 'concluded', 'null'];
    expect(seen).toEqual(
      ['before', 'while', 'after'].flatMap((id) => states.map((state) => `${id} ${state}`)),
    );
  });

  it('says what it could not have again', async () => {
    const proxy = await Relay.start('too-old');
    const client = await open({ socket: proxy.path, ...quick });
    const direct = await open();
    const gaps: EventGap[] = [];
    const events = await client.subscribe({ job: 'later', onGap: (gap) => gaps.push(gap) });
    const strict = await client.subscribe({ job: 'later' });
    const { seq } = strict;
    await broken(client, proxy);
    for (let n = 0; n < 544; n += 32) {
      await Promise.all(Array.from({ length: 32 }, () => direct.imageCheck(fake('echo'))));
    }
    proxy.open = true;
    await client.ping();
    await direct.imageCheck(fake('echo'), { job: { id: 'later' } });
    expect((await take(events, 1))[0]).toMatchObject({
      event: 'JOB_STATUS_CHANGE',
      data: { status: 'created' },
    });
    expect(gaps).toEqual([{ reason: 'too-old', after: seq, oldest: expect.any(Number) as number }]);
    expect(await failure(take(strict, 1))).toMatchObject({ kind: 'events-lost', gap: { reason: 'too-old' } });
  });

  it('does not lose jobs: calls, results and progress go on', async () => {
    const proxy = await Relay.start('jobs');
    const states: string[] = [];
    const client = await open({ socket: proxy.path, ...quick, onState: (state) => states.push(state) });
    const call = client.imageCheck(fake('steps:60:10:10'));
    const job = await client.start('image-check', fake('steps:60:10:10'));
    const result = job.result();
    const reader = job.progress();
    await reader.next();
    await broken(client, proxy);
    proxy.open = true;
    expect(await call).toEqual({ total: 600 });
    expect(await result).toEqual({ total: 600 });
    const percents: number[] = [];
    for await (const { percent } of reader) percents.push(percent);
    expect(percents.at(-1)).toBe(100);
    expect(states).toEqual(['connected', 'reconnecting', 'connected']);
    // Asked for once: the second time they were only waited for.
    expect(proxy.called('image-check')).toBe(2);
  });

  it('makes queries again, but nothing that changes something', async () => {
    const proxy = await Relay.start('again');
    const client = await open({ socket: proxy.path, ...quick });
    const cancel = new AbortController();
    const running = client.imageCheck(fake('steps:1000:1:10'), { signal: cancel.signal });
    await client.ping();
    proxy.target = join(folder, 'nowhere.sock');
    await broken(client, proxy);
    const query = client.queryJobs();
    const stopRunning = failure(running);
    cancel.abort();
    const stop = new AbortController();
    const never = client.imageCheck(fake('echo'), { signal: stop.signal });
    stop.abort();
    await expect(never).rejects.toBe(stop.signal.reason);
    proxy.target = socket;
    proxy.open = true;
    expect(await query).toBeInstanceOf(Array);
    expect(proxy.called('image-check')).toBe(1);
    // Aborted while the connection was away: cancelled when it was back.
    expect((await stopRunning).kind).toBe('cancelled');
    const change = client.jobCancel({ id: 'x' });
    proxy.break();
    expect((await failure(change)).kind).toBe('connection-lost');
    await client.ping();
  });

  it('finds another daemon: events and jobs of the one before are told to be lost', async () => {
    const path = join(folder, 'second.sock');
    const first = await startDaemon(path);
    const client = await open({ socket: path, ...quick });
    const gaps: EventGap[] = [];
    const events = await client.subscribe({ onGap: (gap) => gaps.push(gap) });
    const job = await client.start('image-check', fake('spin'));
    const call = client.imageCheck(fake('spin'), { job: { id: 'lost' } });
    const lost = failure(call);
    const progress = take(job.progress(), 1000);
    await client.ping();
    first.process.kill('SIGKILL');
    await first.exited;
    await startDaemon(path);
    expect(await lost).toMatchObject({ kind: 'interrupted', job: 'lost' });
    await progress;
    expect((await failure(job.result())).kind).toBe('interrupted');
    expect(gaps).toMatchObject([{ reason: 'restarted' }]);
    await client.imageCheck(fake('echo'), { job: { id: 'new' } });
    for await (const event of events) {
      if (event.event !== 'JOB_STATUS_CHANGE' || event.data.id !== 'new') continue;
      expect(event.data.status).toBe('created');
      break;
    }
  });

  it('closes the client where it was told so, or has tried often enough', async () => {
    for (const reconnect of [false, { first: 5, attempts: 2 }] as const) {
      const proxy = await Relay.start(`closes-${reconnect === false}`);
      const client = await open({ socket: proxy.path, reconnect });
      const events = await client.subscribe();
      const call = failure(client.imageCheck(fake('spin'), { job: { 'cancel-on-disconnect': true } }));
      proxy.open = false;
      proxy.break();
      const end = failure(take(events, 1000));
      expect((await call).kind).toMatch(/^connection-/);
      expect((await end).kind).toMatch(/^connection-/);
      expect(client.state).toBe('closed');
    }
  });
});
