/** The client's side of the wire, against a server that does what it is told. */
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { Listeners } from '../../clients/qemu-img/declare.js';
import { connect } from '../../clients/qemu-img/remote.js';
import { endpoint } from '../../clients/qemu-img/transport.js';
import { tempDir } from '../support/reference.js';

interface Request {
  id: number;
  method: string;
  params: Record<string, unknown>;
}

const folder = tempDir();
let server: Server | undefined;
let count = 0;

afterEach(() => {
  server?.close();
});

/** Calls `answer` with the requests of each chunk that arrives; returns a connection to itself. */
async function serve(answer: (requests: Request[], socket: Socket) => void) {
  const path = join(folder, `${count++}.sock`);
  server = createServer((socket) => {
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => {
      const lines = chunk.split('\n').filter((line) => line !== '');
      answer(
        lines.map((line) => JSON.parse(line) as Request),
        socket,
      );
    });
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => server?.listen(path, resolve));
  return connect(path);
}

const line = (message: object) => `${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`;
const event = (name: string, data: object) =>
  line({ method: 'event', params: { subscription: 's', seq: 1, event: name, data } });

const silent: Required<Listeners> = { onProgress() {}, onEntries() {}, onText() {}, onTrace() {} };
const never = new AbortController().signal;

describe('the connection to a daemon', () => {
  it('subscribes and starts the job in one write, as a job that waits and dies with its client', async () => {
    let seen: Request[] = [];
    const transport = await serve((requests, socket) => {
      seen = requests;
      socket.write(line({ id: 1, result: { subscription: 's' } }) + line({ id: 2, result: { size: 7 } }));
    });
    expect(await transport.run('image-convert', { cwd: '/x', sources: [] }, silent, never)).toEqual({
      result: { size: 7 },
    });
    const [subscribe, operation] = seen;
    const job = (operation!.params.job as { id: string }).id;
    expect(subscribe).toMatchObject({ method: 'events-subscribe', params: { filter: { job } } });
    expect(operation).toEqual({
      jsonrpc: '2.0',
      id: 2,
      method: 'image-convert',
      params: { cwd: '/x', sources: [], job: { id: job, wait: true, 'cancel-on-disconnect': true } },
    });
  });

  it('hands on events, however they are cut', async () => {
    const said: unknown[] = [];
    const transport = await serve((_, socket) => {
      const text =
        event('JOB_STATUS_CHANGE', { id: 'j', status: 'running' }) +
        event('JOB_PROGRESS', { id: 'j', phase: 'copy', done: 1, total: 2 }) +
        event('JOB_OUTPUT', { id: 'j', stream: 'stdout', text: 'Formatting é\n' }) +
        event('JOB_OUTPUT', { id: 'j', stream: 'stderr', text: 'warning\n' }) +
        event('JOB_OUTPUT', { id: 'j', stream: 'trace', text: 'bdrv_close bs 0x1\n' }) +
        event('JOB_OUTPUT', { id: 'j', stream: 'entries', entries: [{ start: 0 }] }) +
        line({ id: 2, result: {} });
      const bytes = Buffer.from(text);
      socket.setNoDelay();
      for (let at = 0; at < bytes.length; at += 100) socket.write(bytes.subarray(at, at + 100));
    });
    await transport.run(
      'image-create',
      {},
      {
        onProgress: ({ done, total }) => said.push(done / total),
        onEntries: (entries) => said.push(...entries),
        onText: (stream, text) => said.push(`${stream} ${text}`),
        onTrace: (text) => said.push(`trace ${text}`),
      },
      never,
    );
    expect(said).toEqual([
      0.5,
      'stdout Formatting é\n',
      'stderr warning\n',
      'trace bdrv_close bs 0x1\n',
      { start: 0 },
    ]);
  });

  it('makes errors of errors', async () => {
    const transport = await serve((_, socket) => {
      const error = {
        code: -32006,
        message: 'Failed to get "write" lock',
        data: { kind: 'locked', hint: 'Is another?' },
      };
      socket.write(line({ id: 2, error }));
    });
    const reply = await transport.run('image-info', {}, silent, never);
    expect(reply).toMatchObject({
      error: { message: 'Failed to get "write" lock', kind: 'locked', hint: 'Is another?' },
    });
  });

  it('cancels the job and waits for its end', async () => {
    const stop = new AbortController();
    const methods: string[] = [];
    const transport = await serve((requests, socket) => {
      for (const { method, params } of requests) {
        methods.push(method);
        if (method === 'image-convert') stop.abort();
        if (method !== 'job-cancel') continue;
        expect(params).toEqual({ id: expect.stringMatching(/^qemu-img-/) as string });
        socket.write(line({ id: 3, result: {} }));
        setTimeout(() => {
          const error = { code: -32013, message: 'Operation cancelled', data: { kind: 'cancelled' } };
          socket.write(line({ id: 2, error }));
        }, 20);
      }
    });
    const reply = await transport.run('image-convert', {}, silent, stop.signal);
    expect(reply).toMatchObject({ error: { kind: 'cancelled' } });
    expect(methods).toEqual(['events-subscribe', 'image-convert', 'job-cancel']);
  });

  it('says so when the daemon goes away', async () => {
    const transport = await serve((_, socket) => socket.destroy());
    const reply = await transport.run('image-info', {}, silent, never);
    expect(reply).toMatchObject({ error: { message: 'The connection to the daemon was lost' } });
  });

  it('ends the connection, and so the job, when a listener fails', async () => {
    const transport = await serve((_, socket) =>
      socket.write(event('JOB_OUTPUT', { id: 'j', stream: 'entries', entries: [] })),
    );
    const listeners = {
      ...silent,
      onEntries() {
        throw new Error('cannot show that');
      },
    };
    await expect(transport.run('image-map', {}, listeners, never)).rejects.toThrow('cannot show that');
  });

  it('rejects where nobody answers', async () => {
    await expect(connect(join(folder, 'nobody.sock'))).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

describe('the endpoint', () => {
  it('is what --connect says, then IMGD_SOCKET, then the default; none and an empty variable stand for no daemon', () => {
    expect(endpoint('/a', { IMGD_SOCKET: '/b' })).toEqual({ path: '/a', required: true });
    expect(endpoint('none', { IMGD_SOCKET: '/b' })).toBeUndefined();
    expect(endpoint(undefined, { IMGD_SOCKET: '/b' })).toEqual({ path: '/b', required: false });
    expect(endpoint(undefined, { IMGD_SOCKET: '', XDG_RUNTIME_DIR: '/r' })).toBeUndefined();
  });
});
