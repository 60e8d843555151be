/** JSON-RPC clients from npm and curl, unmodified, on each listener: an image is created by a job, and looked at. */
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { run, tempDir } from '../support/reference.js';
import { type RunningDaemon, startDaemon } from './support/daemon.js';

const require = createRequire(import.meta.url);
const folder = tempDir();
const token = 'a-token-for-the-clients';
const headers = { authorization: `Bearer ${token}` };
let daemon: RunningDaemon;
let port: number;

beforeAll(async () => {
  const file = join(folder, 'tokens');
  writeFileSync(file, `${token}\n`, { mode: 0o600 });
  const flags = ['--listen', '127.0.0.1:0', '--token-file', file, '--journal', 'none'];
  daemon = await startDaemon(join(folder, 'c.sock'), flags, { real: true });
  const { addresses } = daemon.log().find((line) => line.msg === 'listening') as { addresses: string[] };
  port = Number(new URL(addresses[1]!).port);
});
afterAll(() => void daemon.process.kill('SIGKILL'));

type Call = (method: string, params: object) => Promise<unknown>;

/** What every client must be able to do. */
async function work(name: string, call: Call): Promise<void> {
  const filename = `${name}.qcow2`;
  const job = { id: name, wait: false, 'auto-dismiss': false };
  const create = { cwd: folder, filename, format: 'qcow2', size: 16 * 2 ** 20, job };
  expect(await call('image-create', create)).toEqual({ job: name });
  await call('job-wait', { id: name });
  expect(await call('query-jobs', { id: name })).toMatchObject([{ id: name, status: 'concluded' }]);
  expect(await call('image-info', { cwd: folder, image: { filename } })).toMatchObject({
    images: [{ format: 'qcow2', 'virtual-size': 16 * 2 ** 20 }],
  });
  await expect(call('image-info', { cwd: folder, image: { filename: 'none' } })).rejects.toThrow(
    "Could not open 'none': No such file or directory",
  );
}

interface JaysonClient {
  request(method: string, params: object, done: (error: Error | null, reply: Reply) => void): void;
}
interface Reply {
  readonly result?: unknown;
  readonly error?: { readonly message: string };
}
const jayson = require('jayson') as {
  Client: Record<'tcp' | 'http', (options: object) => JaysonClient>;
};

function byJayson(client: JaysonClient): Call {
  return (method, params) =>
    new Promise((resolve, reject) => {
      client.request(method, params, (error, reply) => {
        if (error !== null && error !== undefined) reject(error);
        else if (reply.error !== undefined) reject(new Error(reply.error.message));
        else resolve(reply.result);
      });
    });
}

it('jayson on the Unix socket', () =>
  work('jayson-unix', byJayson(jayson.Client.tcp({ path: daemon.socket, delimiter: '\n' }))));

it('jayson by HTTP', () =>
  work('jayson-http', byJayson(jayson.Client.http({ host: '127.0.0.1', port, path: '/rpc', headers }))));

it('jayson by HTTP on the Unix socket', () =>
  work('jayson-post', byJayson(jayson.Client.http({ socketPath: daemon.socket, path: '/rpc' }))));

it('@open-rpc/client-js by HTTP and WebSocket', async () => {
  const { Client, HTTPTransport, RequestManager, WebSocketTransport } = await import('@open-rpc/client-js');
  type Transport = ConstructorParameters<typeof RequestManager>[0][number];
  const by = (transport: Transport): Call => {
    const client = new Client(new RequestManager([transport]));
    return (method, params) => client.request({ method, params });
  };
  await work('openrpc-http', by(new HTTPTransport(`http://127.0.0.1:${port}/rpc`, { headers })));
  // Its WebSocket takes nothing but an address.
  const socket = new WebSocketTransport(`ws://any:${token}@127.0.0.1:${port}/rpc`);
  await work('openrpc-ws', by(socket));
  socket.close();
});

it('wscat', async () => {
  const program = require.resolve('wscat/bin/wscat');
  let next = 0;
  const call: Call = async (method, params) => {
    const request = JSON.stringify({ jsonrpc: '2.0', id: ++next, method, params });
    const args = [program, '-c', `ws://127.0.0.1:${port}/rpc`, '-H', `authorization: Bearer ${token}`];
    const child = spawn(process.execPath, [...args, '-x', request, '-w', '1'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    let out = '';
    for await (const chunk of child.stdout) {
      out += chunk;
      if (out.includes('\n')) break;
    }
    child.kill();
    const reply = JSON.parse(out.slice(out.indexOf('{'))) as Reply;
    if (reply.error !== undefined) throw new Error(reply.error.message);
    return reply.result;
  };
  await work('wscat', call);
});

it('curl on the Unix socket', async ({ skip }) => {
  try {
    run('curl', ['--version']);
  } catch {
    process.stderr.write('\nSKIPPED (no curl in PATH): curl on the Unix socket\n');
    skip();
  }
  const call: Call = async (method, params) => {
    const request = JSON.stringify({ jsonrpc: '2.0', id: 1, method, params });
    const sent = run('curl', ['-s', '--unix-socket', daemon.socket, 'http://localhost/rpc', '-d', request]);
    const reply = JSON.parse(sent.stdout) as Reply;
    if (reply.error !== undefined) throw new Error(reply.error.message);
    return reply.result;
  };
  await work('curl', call);
});

it('nothing comes unasked before a subscription', async () => {
  const socket = connect(daemon.socket);
  let out = '';
  socket.on('data', (chunk) => {
    out += chunk.toString();
  });
  socket.write('{"jsonrpc":"2.0","id":1,"method":"ping"}\n');
  while (!out.includes('\n')) await new Promise((resolve) => socket.once('data', resolve));
  socket.destroy();
  expect(JSON.parse(out)).toEqual({ jsonrpc: '2.0', id: 1, result: {} });
});
