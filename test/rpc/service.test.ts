/** The daemon as a service: sockets handed over, readiness told, settings read again. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import type * as Koffi from 'koffi';
import { describe, expect, it, onTestFinished } from 'vitest';
import { run, tempDir } from '../support/reference.js';
import { dist, fake, Peer, realMain, startDaemon } from './support/daemon.js';

const folder = tempDir();
const fakeMain = new URL('./support/fake-daemon.mjs', import.meta.url).pathname;
const token = 'correct-horse-battery-staple';
const tokenFile = join(folder, 'tokens');
writeFileSync(tokenFile, `${token}\n`, { mode: 0o600 });

const koffi = createRequire(import.meta.url)('koffi') as typeof Koffi;
const libc = koffi.load(null);

/** `struct sockaddr_un`. */
function unixAddress(path: string): Buffer {
  return Buffer.concat([Buffer.from([1, 0]), Buffer.from(`${path}\0`)]);
}

/** A bound socket's descriptor. Not Node's: it would accept what the daemon is to accept, and remove the path. */
function bound(path: string, type: 'stream' | 'datagram'): number {
  const fd = libc.func('int socket(int, int, int)')(1, type === 'stream' ? 1 : 2, 0) as number;
  const address = unixAddress(path);
  expect(libc.func('int bind(int, void *, uint32_t)')(fd, address, address.length)).toBe(0);
  if (type === 'stream') expect(libc.func('int listen(int, int)')(fd, 16)).toBe(0);
  onTestFinished(() => void libc.func('int close(int)')(fd));
  return fd;
}

/** A TCP server on any port: to be closed here once it has been handed over. */
function tcpServer(): Promise<{ server: Server; fd: number; port: number }> {
  const server = createServer();
  return new Promise((done) => {
    server.listen(0, '127.0.0.1', () => {
      const { fd } = (server as unknown as { _handle: { fd: number } })._handle;
      done({ server, fd, port: (server.address() as AddressInfo).port });
    });
  });
}

/** Hands sockets over as systemd does: from descriptor 3 on, and the process's own number in LISTEN_PID. */
function activate(fds: readonly number[], flags: readonly string[], count = fds.length): ChildProcess {
  const child = spawn('sh', ['-c', 'LISTEN_PID=$$ exec "$@"', 'sh', process.execPath, fakeMain, ...flags], {
    stdio: ['ignore', 'ignore', 'pipe', ...fds],
    env: { ...process.env, IMGD_DIST: dist, LISTEN_FDS: String(count) },
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  return child;
}

function until(child: ChildProcess, text: string): Promise<string> {
  return new Promise((done) => {
    let stderr = '';
    child.stderr!.on('data', (part) => {
      stderr += part;
      if (stderr.includes(text)) done(stderr);
    });
    child.on('close', () => done(stderr));
  });
}

describe('sockets from systemd', () => {
  it('are served, and left where they are at the end', async () => {
    const path = join(folder, 'handed.sock');
    const { server, fd, port } = await tcpServer();
    const child = activate([bound(path, 'stream'), fd], ['--token-file', tokenFile]);
    server.close();
    const log = await until(child, '"msg":"listening"');
    expect(log).toContain(`"LISTEN_FDS","ws://127.0.0.1:${port}"`);
    const peer = await Peer.connect(path);
    expect((await peer.call('ping')).result).toEqual({});
    const response = await fetch(`http://127.0.0.1:${port}/metrics`, {
      headers: { authorization: `Bearer ${token}` },
    });
    expect(response.status).toBe(200);
    const gone = new Promise((done) => child.on('close', done));
    await peer.call('shutdown');
    expect(await gone).toBe(0);
    expect(existsSync(path)).toBe(true);
  });

  it('are refused where they make no sense', async () => {
    const { server, fd: tcp } = await tcpServer();
    expect(await until(activate([tcp], []), 'never')).toMatch(
      /^imgd: a TCP socket was handed over.*--token-file/,
    );
    expect(await until(activate([tcp, tcp], ['--token-file', tokenFile]), 'never')).toMatch(
      /more than one tcp/,
    );
    expect(await until(activate([], [], 1), 'never')).toMatch(/^imgd: descriptor 3 from LISTEN_FDS is no/);
    server.close();
  });

  it('are not taken by a process that they are not meant for', async () => {
    const socket = join(folder, 'own.sock');
    const before = process.env.LISTEN_FDS;
    process.env.LISTEN_FDS = '1';
    process.env.LISTEN_PID = '1';
    try {
      await startDaemon(socket);
    } finally {
      delete process.env.LISTEN_PID;
      if (before === undefined) delete process.env.LISTEN_FDS;
    }
    expect((await (await Peer.connect(socket)).call('ping')).result).toEqual({});
  });
});

/** A datagram socket, as a service manager's: Node has none of that kind. */
function manager(path: string): { read(): string | undefined } {
  const fd = bound(path, 'datagram');
  const receive = libc.func('int64_t recv(int, void *, size_t, int)');
  const MSG_DONTWAIT = 0x40;
  return {
    read() {
      const into = Buffer.alloc(256);
      const length = receive(fd, into, into.length, MSG_DONTWAIT) as number;
      return length < 0 ? undefined : into.toString('utf8', 0, length);
    },
  };
}

describe('a service manager', () => {
  it('is told when the daemon serves, reads its settings again, and stops', async () => {
    const path = join(folder, 'notify');
    const told = manager(path);
    const lines: string[] = [];
    process.env.NOTIFY_SOCKET = path;
    const socket = join(folder, 'n.sock');
    const daemon = await startDaemon(socket).finally(() => delete process.env.NOTIFY_SOCKET);
    const peer = await Peer.connect(socket);
    const next = async (): Promise<string> => {
      for (;;) {
        const line = told.read();
        if (line !== undefined) {
          lines.push(line);
          return line;
        }
        await peer.call('ping');
      }
    };
    expect(await next()).toBe('READY=1');
    daemon.process.kill('SIGHUP');
    expect(await next()).toMatch(/^RELOADING=1\nMONOTONIC_USEC=\d+$/);
    expect(await next()).toBe('READY=1');
    daemon.process.kill('SIGTERM');
    expect(await daemon.exited).toBe(0);
    expect(told.read()).toBe('STOPPING=1');
  });
});

describe('SIGHUP', () => {
  it('takes over what can change while it runs, and tells of the rest', async () => {
    const file = join(folder, 'imgd.conf');
    const tokens = join(folder, 'changing');
    const write = (more: string): void => {
      writeFileSync(file, `listen = 127.0.0.1:0\ntoken-file = ${tokens}\n${more}`);
    };
    writeFileSync(tokens, `${token}\n`, { mode: 0o600 });
    write('max-running = 1\n');
    const daemon = await startDaemon(join(folder, 'r.sock'), ['--config', file]);
    const peer = await Peer.connect(daemon.socket);
    const message = (msg: string): Promise<Record<string, unknown>> =>
      (async () => {
        for (;;) {
          const found = daemon.log().findLast((line) => line.msg === msg);
          if (found !== undefined) return found;
          await peer.call('ping');
        }
      })();
    const [, url] = (await message('listening')).addresses as string[];
    const status = async (shown: string): Promise<number> => {
      const headers = { authorization: `Bearer ${shown}` };
      return (await fetch(`${url!.replace('ws:', 'http:')}/metrics`, { headers })).status;
    };
    expect(await status(token)).toBe(200);
    // Two jobs, one at a time.
    await peer.call('events-subscribe', { filter: { events: ['JOB_STATUS_CHANGE'] } });
    for (const id of ['a', 'b'])
      await peer.call('image-check', fake('steps:100000:1:5', { id, wait: false }));
    await peer.status('a', 'running');
    expect((await peer.call('query-status')).result.workers.limit).toBe(1);

    writeFileSync(tokens, 'another-token-of-length\n');
    write(`max-running = 2\nlog-level = debug\nroot = ${folder}\nworker-memory = 64\n`);
    daemon.process.kill('SIGHUP');
    // What queued starts without any other reason.
    await peer.status('b', 'running');
    expect((await message('changes that wait for a new start')).settings).toEqual(['root', 'worker-memory']);
    expect(await status(token)).toBe(401);
    expect(await status('another-token-of-length')).toBe(200);

    write('max-running = none\n');
    daemon.process.kill('SIGHUP');
    expect((await message('settings stay as they were')).reason).toMatch(/imgd\.conf:3: max-running takes/);
    expect((await peer.call('query-status')).result.workers.limit).toBe(2);
  });

  it('is not needed to know whether the settings are right', () => {
    const file = join(folder, 'checked.conf');
    writeFileSync(file, 'max-jobs = 12\nsocket = /run/x.sock\n');
    const good = run(process.execPath, [realMain, '--config', file, '--check-config']);
    expect(good).toMatchObject({ status: 0, stderr: '' });
    expect(good.stdout).toContain('max-jobs = 12  # file\n');
    writeFileSync(file, 'max-jobs = 0\n');
    const bad = run(process.execPath, [realMain, '--config', file, '--check-config']);
    expect(bad).toMatchObject({ status: 2, stdout: '' });
    expect(bad.stderr).toMatch(/^imgd: .*checked\.conf:1: max-jobs takes a whole number/);
  });
});
