/** JSON-RPC by HTTP POST: on the Unix socket and on the TCP port. */
import { writeFileSync } from 'node:fs';
import { type IncomingHttpHeaders, request } from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, tempDir } from '../support/reference.js';
import { fake, Peer, type RunningDaemon, startDaemon } from './support/daemon.js';

const folder = tempDir();
const tokens = {
  admin: 'admin-token-of-length-24',
  operate: 'operator-token-of-length',
  watch: 'watchers-token-of-length',
};
let daemon: RunningDaemon;
let port: number;

beforeAll(async () => {
  const file = join(folder, 'tokens');
  const lines = [tokens.admin, `${tokens.operate} operate`, `${tokens.watch}\twatch`];
  writeFileSync(file, `${lines.join('\n')}\n`, { mode: 0o600 });
  daemon = await startDaemon(join(folder, 'h.sock'), [
    ...['--listen', '127.0.0.1:0', '--token-file', file, '--max-message', '65536'],
    ...['--allow-origin', 'https://panel.example', '--allow-host', 'imgd.example'],
  ]);
  const addresses = daemon.log().find((line) => line.msg === 'listening')!.addresses as string[];
  port = Number(new URL(addresses[1]!).port);
});
afterAll(() => void daemon.process.kill('SIGKILL'));

interface Reply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into results of many shapes
  readonly json?: any;
}
interface Ask {
  readonly method?: string;
  readonly path?: string;
  readonly headers?: Record<string, string>;
  readonly body?: string | Buffer;
  readonly token?: string | undefined;
  readonly unix?: boolean;
}

function ask({
  method = 'POST',
  path = '/rpc',
  headers = {},
  body,
  token,
  unix = false,
}: Ask): Promise<Reply> {
  return new Promise((done, fail) => {
    const sent = request(
      {
        ...(unix ? { socketPath: daemon.socket } : { host: '127.0.0.1', port }),
        method,
        path,
        headers: {
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
          ...headers,
        },
      },
      (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (part: string) => {
          text += part;
        });
        response.on('end', () => {
          const json = response.headers['content-type'] === 'application/json' && text !== '';
          const { statusCode: status = 0, headers } = response;
          done({ status, headers, text, ...(json ? { json: JSON.parse(text) } : {}) });
        });
      },
    );
    sent.on('error', fail);
    sent.end(body);
  });
}
const line = (method: string, params?: unknown, id: unknown = 1): string =>
  JSON.stringify({ jsonrpc: '2.0', id, method, ...(params === undefined ? {} : { params }) });
const call = (token: string | undefined, method: string, params?: unknown): Promise<Reply> =>
  ask({ token, body: line(method, params) });

describe.each([
  ['the Unix socket', { unix: true }],
  ['the TCP port', { token: tokens.admin }],
])('HTTP on %s', (_, to: Ask) => {
  it('answers calls, batches, notifications and jobs', async () => {
    expect(await ask({ ...to, body: line('ping') })).toMatchObject({
      status: 200,
      json: { jsonrpc: '2.0', id: 1, result: {} },
    });
    const batch = await ask({
      ...to,
      path: '/',
      body: `[${line('ping', {}, 'a')},7,${line('nothing', {}, 'b')}]`,
    });
    expect(batch.json).toHaveLength(3);
    expect(batch.json).toContainEqual({ jsonrpc: '2.0', id: 'a', result: {} });
    const notification = await ask({ ...to, body: '{"jsonrpc":"2.0","method":"ping"}' });
    expect(notification).toMatchObject({ status: 204, text: '' });
    const job = await ask({ ...to, body: line('image-check', fake('steps:3:10:5')) });
    expect(job.json.result).toEqual({ total: 30 });
    expect((await ask({ ...to, body: '{"jsonrpc":' })).json.error.data.kind).toBe('parse');
    expect((await ask({ ...to, body: Buffer.from([0x22, 0xff, 0x22]) })).json.error.data.kind).toBe('parse');
    expect((await ask({ ...to, body: '' })).json.error.data.kind).toBe('parse');
    // An answer is all that there is: what would come later has nowhere to go.
    expect((await ask({ ...to, body: line('events-subscribe') })).json.error.data.kind).toBe('unsupported');
  });

  it('says what is wrong with a request', async () => {
    expect(await ask({ ...to, path: '/other', body: '{}' })).toMatchObject({ status: 404 });
    const get = await ask({ ...to, method: 'GET' });
    expect(get).toMatchObject({ status: 405, headers: { allow: 'POST' }, text: 'POST JSON-RPC here\n' });
    const typed = (type: string): Promise<Reply> =>
      ask({ ...to, body: line('ping'), headers: { 'content-type': type } });
    expect((await typed('text/plain')).status).toBe(415);
    expect((await typed('application/json; charset=utf-8')).status).toBe(200);
    expect((await typed('application/x-www-form-urlencoded')).status).toBe(to.unix ? 200 : 415);
    const packed = await ask({ ...to, body: 'x', headers: { 'content-encoding': 'gzip' } });
    expect(packed.status).toBe(415);
    const long = 'x'.repeat(70_000);
    expect(await ask({ ...to, body: long })).toMatchObject({
      status: 413,
      text: 'a request has at most 65536 bytes\n',
    });
    // Without a length beforehand it is counted.
    const chunked = await ask({ ...to, body: long, headers: { 'transfer-encoding': 'chunked' } });
    expect(chunked.status).toBe(413);
    expect((await ask({ ...to, body: line('ping') })).status).toBe(200);
  });

  it('cancels the job of a client that hangs up, if it asked for that', async () => {
    const watcher = await Peer.connect(daemon.socket);
    await watcher.call('events-subscribe', { filter: { job: 'hung' } });
    const options = { id: 'hung', 'cancel-on-disconnect': true };
    const body = line('image-check', fake('steps:100000:1:5', options));
    const sent = request({
      ...(to.unix ? { socketPath: daemon.socket } : { host: '127.0.0.1', port }),
      method: 'POST',
      path: '/rpc',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${tokens.admin}` },
    });
    sent.on('error', () => undefined);
    sent.end(body);
    await watcher.status('hung', 'running');
    sent.destroy();
    await watcher.status('hung', 'concluded');
    expect((await watcher.call('job-dismiss', { id: 'hung' })).result).toEqual({});
  });
});

describe('the Unix socket', () => {
  it('tells lines from HTTP by their first bytes, however they arrive', async () => {
    const socket = connect(daemon.socket);
    let text = '';
    socket.on('data', (part) => {
      text += part;
    });
    const body = line('ping');
    const bytes = `POST /rpc HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
    for (const part of [bytes.slice(0, 1), bytes.slice(1, 4), bytes.slice(4, 30), bytes.slice(30)]) {
      await new Promise((done) => socket.write(part, () => setImmediate(done)));
    }
    await new Promise((done) => socket.on('close', done));
    expect(text).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(text).toMatch(/"result":\{\}\}\n$/);
    // What is neither is a line that is not JSON.
    const peer = await Peer.connect(daemon.socket);
    peer.write('PO');
    peer.socket.end('LISH\n');
    await peer.closed;
    expect(peer.received).toMatchObject([{ error: { data: { kind: 'parse' } } }]);
  });

  it('is spoken to by curl, where there is one', (context) => {
    const curl = (...more: string[]) =>
      run('curl', ['-sS', '--unix-socket', daemon.socket, 'http://localhost/rpc', ...more]);
    const version = run('curl', ['--version']);
    if (version.status !== 0) {
      console.warn('curl is not installed: not tried');
      context.skip();
    }
    const answered = curl('-d', line('query-version'));
    expect(JSON.parse(answered.stdout.toString()).result.version).toBe('0.1.0');
  });

  it('knows who is there', async () => {
    const peer = await Peer.connect(daemon.socket);
    const mine = () =>
      daemon
        .log()
        .find((each) => each.msg === 'connected' && (each.peer as { pid?: number })?.pid === process.pid);
    // The log comes when it comes.
    while (mine() === undefined) await peer.call('ping');
    expect(mine()).toMatchObject({
      peer: { uid: process.getuid!(), gid: process.getgid!() },
      role: 'admin',
    });
  });
});

describe('rubbish', () => {
  it('costs its own connection only: broken requests, cut anywhere', async () => {
    let seed = 7;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    const body = line('ping');
    const good = `POST /rpc HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nAuthorization: Bearer ${tokens.admin}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
    const attack = (unix: boolean): Promise<void> =>
      new Promise((done) => {
        const bytes = Buffer.from(good);
        for (let n = random(6); n > 0; n--) bytes[random(bytes.length)] = random(256);
        const socket = unix ? connect(daemon.socket) : connect(port, '127.0.0.1');
        socket.on('error', () => undefined);
        socket.on('close', () => done());
        socket.on('data', () => socket.destroy());
        const part = bytes.subarray(0, 1 + random(bytes.length));
        socket.write(part, () => (random(2) === 0 ? socket.destroy() : socket.end()));
      });
    for (let round = 0; round < 100; round++) await Promise.all([attack(true), attack(false)]);
    expect((await ask({ unix: true, body: line('ping') })).status).toBe(200);
    expect((await call(tokens.admin, 'ping')).status).toBe(200);
    expect(daemon.process.exitCode).toBeNull();
    expect(daemon.log().filter((each) => each.level === 'error' || each.level === 'fatal')).toEqual([]);
    const { text } = await ask({ method: 'GET', path: '/metrics', unix: true });
    // Nothing is left of them; this request is no session.
    expect(text).toMatch(/^imgd_connections\{transport="http"\} 0$/m);
  });
});

describe('a role', () => {
  const kind = async (token: string, method: string, params: unknown = {}): Promise<unknown> => {
    const { json } = await call(token, method, params);
    return json.error?.data.kind ?? 'ok';
  };

  it('is needed by every command: watchers look, operators work, admins end it', async () => {
    for (const method of ['query-jobs', 'query-status', 'ping', 'rpc.discover']) {
      expect(await kind(tokens.watch, method)).toBe('ok');
    }
    expect(await kind(tokens.watch, 'image-check', fake('echo'))).toBe('forbidden');
    expect(await kind(tokens.watch, 'job-cancel', { id: 'x' })).toBe('forbidden');
    // Told before anything else is looked at.
    expect(await kind(tokens.watch, 'image-check', { nonsense: 1 })).toBe('forbidden');
    expect(await kind(tokens.operate, 'image-check', fake('echo'))).toBe('ok');
    expect(await kind(tokens.operate, 'shutdown')).toBe('forbidden');
    const { json } = await call(tokens.watch, 'image-check', fake('echo'));
    expect(json.error).toMatchObject({
      code: -32048,
      message: "'image-check' needs the role 'operate', this client has 'watch'",
      data: { check: 'role-operate' },
    });
  });

  it('comes with a token, and nobody is let in without one', async () => {
    const refused = await ask({ body: line('ping') });
    expect(refused).toMatchObject({ status: 401, text: 'a bearer token is needed\n' });
    expect(refused.headers['www-authenticate']).toBe('Bearer');
    const wrong = await call(`${tokens.admin}x`, 'ping');
    expect(wrong).toMatchObject({ status: 401, text: 'this token is not known\n' });
    expect((await ask({ method: 'GET', path: '/metrics' })).status).toBe(401);
    for (const token of Object.values(tokens)) expect(daemon.stderr()).not.toContain(token);
  });
});

describe('a page from elsewhere', () => {
  const token = tokens.admin;
  const from = (headers: Record<string, string>): Promise<Reply> =>
    ask({ token, headers, body: line('ping') });

  it('is refused by its Origin, unless that is allowed', async () => {
    const evil = await from({ origin: 'https://evil.example' });
    expect(evil).toMatchObject({ status: 403 });
    expect(evil.text).toMatch(/origin/);
    expect((await from({ origin: 'null' })).status).toBe(403);
    expect((await from({ origin: `https://127.0.0.1:${port}` })).status).toBe(403);
    expect((await from({ origin: `http://127.0.0.1:${port}` })).status).toBe(200);
    const panel = await from({ origin: 'https://panel.example' });
    expect(panel.headers['access-control-allow-origin']).toBe('https://panel.example');
    const preflight = (origin: string): Promise<Reply> => ask({ method: 'OPTIONS', headers: { origin } });
    expect(await preflight('https://panel.example')).toMatchObject({
      status: 204,
      headers: { 'access-control-allow-headers': 'authorization, content-type' },
    });
    expect((await preflight('https://evil.example')).status).toBe(403);
  });

  it('is refused by its Host, whatever its DNS says', async () => {
    expect((await from({ host: `evil.example:${port}` })).status).toBe(403);
    expect((await from({ host: '127.0.0.1' })).status).toBe(403);
    expect((await from({ host: `10.0.0.1:${port}` })).status).toBe(403);
    expect((await from({ host: `localhost:${port}` })).status).toBe(200);
    expect((await from({ host: `imgd.example:${port}` })).status).toBe(200);
    expect((await from({ host: 'imgd.example:1' })).status).toBe(403);
    const reasons = daemon.log().filter((each) => each.msg === 'request refused');
    expect(new Set(reasons.map((each) => each.reason))).toEqual(new Set(['token', 'origin', 'host']));
  });
});

describe('GET /metrics', () => {
  it("is Prometheus' text, for watchers", async () => {
    await call(tokens.operate, 'image-check', fake('fail'));
    const first = await ask({ method: 'GET', path: '/metrics', token: tokens.watch });
    expect(first.status).toBe(200);
    expect(first.headers['content-type']).toBe('text/plain; version=0.0.4; charset=utf-8');
    // The event loop is measured from the first look on.
    let text = '';
    while (!text.includes('quantile='))
      ({ text } = await ask({ method: 'GET', path: '/metrics', unix: true }));
    expect(text).toContain('imgd_info{version="0.1.0"} 1\n');
    expect(text).toMatch(/^imgd_jobs_concluded_total\{operation="image-check",outcome="no-space"\} [1-9]/m);
    expect(text).toMatch(/^imgd_job_duration_seconds_bucket\{operation="image-check",le="\+Inf"\} [1-9]/m);
    expect(text).toMatch(/^imgd_job_bytes_total\{operation="image-check",kind="data"\} [1-9]/m);
    expect(text).toMatch(/^imgd_calls_total\{method="ping",outcome="ok"\} [1-9]/m);
    expect(text).toMatch(/^imgd_calls_total\{method="image-check",outcome="forbidden"\} [1-9]/m);
    expect(text).toMatch(/^imgd_requests_refused_total\{reason="host"\} [1-9]/m);
    expect(text).toMatch(/^imgd_event_loop_delay_seconds\{quantile="0.99"\} [\d.e-]+$/m);
    // What clients make up makes no series.
    await call(tokens.watch, 'made-up-by-a-client');
    const wrong = await ask({ method: 'POST', path: '/metrics', unix: true });
    expect(wrong.status).toBe(405);
    const again = (await ask({ method: 'GET', path: '/metrics', unix: true })).text;
    expect(again).not.toContain('made-up');
    for (const each of again.trimEnd().split('\n')) {
      expect(each).toMatch(
        /^(# (HELP|TYPE) imgd_\w+ .+|imgd_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [\d.e+-]+)$/,
      );
    }
  });
});
