import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { WebSocket } from 'ws';
import { tempDir } from '../support/reference.js';
import { fake, type RunningDaemon, startDaemon } from './support/daemon.js';

const folder = tempDir();
const token = 'correct-horse-battery-staple';
let daemon: RunningDaemon;
let url: string;
let host: string;

beforeAll(async () => {
  const file = join(folder, 'tokens');
  writeFileSync(file, `another-token-of-length\n${token}\nwatchers-token-of-length watch\n`, { mode: 0o600 });
  daemon = await startDaemon(join(folder, 'w.sock'), [
    '--listen',
    '127.0.0.1:0',
    '--token-file',
    file,
    '--allow-origin',
    'https://panel.example',
    '--max-message',
    '65536',
  ]);
  url = (daemon.log().find((line) => line.msg === 'listening')!.addresses as string[])[1]!;
  host = new URL(url).host;
});
afterAll(() => void daemon.process.kill('SIGKILL'));

interface Options {
  readonly authorization?: string;
  readonly headers?: Record<string, string>;
  readonly protocols?: string[];
}

/** The open connection, or the HTTP status that it was refused with. */
function open({ authorization, headers, protocols }: Options): Promise<WebSocket | number> {
  return new Promise((done, fail) => {
    const socket = new WebSocket(url, protocols ?? [], {
      headers: { ...(authorization === undefined ? {} : { authorization }), ...headers },
    });
    socket.on('open', () => done(socket));
    socket.on('unexpected-response', (_, response) => {
      done(response.statusCode!);
      response.destroy();
    });
    socket.on('error', (error) => fail(error));
  });
}
async function attempt(options: Options): Promise<'open' | number> {
  const result = await open(options);
  if (typeof result === 'number') return result;
  result.terminate();
  return 'open';
}
const good = `Bearer ${token}`;

describe('WebSocket', () => {
  it('is open to those with a token', async () => {
    expect(await attempt({ authorization: good })).toBe('open');
    expect(await attempt({ authorization: 'bearer another-token-of-length' })).toBe('open');
    const offered = `bearer.${Buffer.from(token).toString('base64url')}`;
    const socket = (await open({ protocols: ['imgd', offered] })) as WebSocket;
    // The token is not echoed.
    expect(socket.protocol).toBe('imgd');
    socket.terminate();
  });

  it('is closed to others', async () => {
    expect(await attempt({})).toBe(401);
    expect(await attempt({ authorization: 'Bearer wrong' })).toBe(401);
    expect(await attempt({ authorization: `Bearer ${token}x` })).toBe(401);
    expect(await attempt({ authorization: `Basic ${token}` })).toBe(401);
    expect(await attempt({ protocols: ['imgd', 'bearer.AAAA'] })).toBe(401);
  });

  it('is closed to pages from elsewhere, and to names that are not this machine', async () => {
    const from = (origin: string): Promise<unknown> => attempt({ authorization: good, headers: { origin } });
    expect(await from('https://evil.example')).toBe(403);
    expect(await from('null')).toBe(403);
    expect(await from(`https://${host}`)).toBe(403);
    expect(await from('http://127.0.0.1:1')).toBe(403);
    expect(await from(`http://${host}`)).toBe('open');
    expect(await from('https://panel.example')).toBe('open');
    const named = (name: string): Promise<unknown> =>
      attempt({ authorization: good, headers: { host: name } });
    expect(await named('evil.example')).toBe(403);
    expect(await named(`evil.example:${new URL(url).port}`)).toBe(403);
    expect(await named('127.0.0.1')).toBe(403);
    expect(await named(`localhost:${new URL(url).port}`)).toBe('open');
    expect(daemon.stderr()).toContain('request refused');
    expect(daemon.stderr()).not.toContain(token);
  });

  it('gives what the role of the token allows', async () => {
    const socket = (await open({ authorization: 'Bearer watchers-token-of-length' })) as WebSocket;
    const calls = ['events-subscribe', 'query-jobs', 'image-check', 'shutdown'].map((method, id) => ({
      jsonrpc: '2.0',
      id,
      method,
      params: method === 'image-check' ? fake('echo') : {},
    }));
    const answers = await new Promise<{ id: number; error?: { data: unknown } }[]>((done) => {
      socket.on('message', (data) => done(JSON.parse(String(data))));
      socket.send(JSON.stringify(calls));
    });
    const refused = answers.filter(({ error }) => error !== undefined).sort((a, b) => a.id - b.id);
    expect(refused).toMatchObject([
      { id: 2, error: { data: { kind: 'forbidden', check: 'role-operate' } } },
      { id: 3, error: { data: { kind: 'forbidden', check: 'role-admin' } } },
    ]);
    socket.terminate();
  });

  it('speaks the same, a message a frame', async () => {
    const socket = (await open({ authorization: good })) as WebSocket;
    const received: { id?: number; method?: string; result?: unknown; params?: { event: string } }[] = [];
    let wake = (): void => undefined;
    socket.on('message', (data) => {
      received.push(JSON.parse(String(data)));
      wake();
    });
    const until = async (id: number): Promise<void> => {
      while (!received.some((each) => each.id === id)) {
        await new Promise<void>((done) => {
          wake = done;
        });
      }
    };
    socket.send('{"jsonrpc":"2.0","id":1,\n"method":"events-subscribe"}');
    await until(1);
    const params = fake('steps:3:10:20', { id: 'web' });
    socket.send(JSON.stringify({ jsonrpc: '2.0', id: 2, method: 'image-check', params }));
    await until(2);
    expect(received.at(-1)).toMatchObject({ id: 2, result: { total: 30 } });
    expect(received.filter((each) => each.method === 'event').length).toBeGreaterThan(4);
    socket.send(Buffer.from('{}'), { binary: true });
    socket.send('[{"jsonrpc":"2.0","id":3,"method":"ping"}]');
    while (!received.some(Array.isArray)) {
      await new Promise<void>((done) => {
        wake = done;
      });
    }
    expect(received.slice(-2)).toMatchObject([{ error: { data: { kind: 'parse' } } }, [{ id: 3 }]]);
    socket.send('x'.repeat(70_000));
    const code = await new Promise((done) => socket.on('close', done));
    expect(code).toBe(1009);
  });
});
