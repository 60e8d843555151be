/** Who gets to a daemon: TLS off loopback, the socket's mode, group and folder, users of other names. */
import { spawnSync } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, statSync, writeFileSync } from 'node:fs';
import { request } from 'node:https';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { describe, expect, it } from 'vitest';
import { WebSocket } from 'ws';
import { run, tempDir } from '../support/reference.js';
import { Peer, type RunningDaemon, realMain, startDaemon } from './support/daemon.js';
import { cert, key, renewed } from './support/tls.js';

const folder = tempDir();
const token = 'correct-horse-battery-staple';
const asRoot = process.getuid!() === 0;
const OTHER = 54321;

function file(name: string, text: string, mode = 0o600): string {
  const path = join(folder, name);
  writeFileSync(path, text, { mode });
  chmodSync(path, mode);
  return path;
}
const tokenFile = file('tokens', `${token}\n`);
const tls = ['--tls-cert', file('cert.pem', cert, 0o644), '--tls-key', file('key.pem', key)];

const address = (daemon: RunningDaemon): URL =>
  new URL((daemon.log().find((line) => line.msg === 'listening')!.addresses as string[])[1]!);

/** Status of a POST of `ping`. */
function post(url: URL, host: string): Promise<number> {
  return new Promise((done, fail) => {
    const sent = request(
      {
        host: '127.0.0.1',
        port: url.port,
        path: '/rpc',
        method: 'POST',
        ca: cert,
        servername: 'imgd.example',
        headers: { host, authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      },
      (response) => {
        response.resume();
        done(response.statusCode!);
      },
    );
    sent.on('error', fail);
    sent.end('{"jsonrpc":"2.0","id":1,"method":"ping"}');
  });
}

describe('off the loopback addresses', () => {
  it('there is no listening without TLS', () => {
    const refused = run(process.execPath, [realMain, '--listen', '0.0.0.0:0', '--token-file', tokenFile]);
    expect(refused.status).toBe(2);
    expect(refused.stderr).toMatch(/^imgd: --listen 0\.0\.0\.0:0: off the loopback .* only with TLS.*\n/);
    const open = run(process.execPath, [
      realMain,
      '--check-config',
      ...tls.slice(0, 3),
      file('k', key, 0o644),
    ]);
    expect(open.stderr).toMatch(/others may read or write it/);
  });

  it('WebSocket and HTTP speak TLS, to those who name this machine as it is called', async () => {
    const daemon = await startDaemon(join(folder, 't.sock'), [
      ...['--listen', '0.0.0.0:0', '--token-file', tokenFile, ...tls, '--allow-host', 'imgd.example'],
    ]);
    const url = address(daemon);
    expect(url.protocol).toBe('wss:');
    expect(await post(url, `imgd.example:${url.port}`)).toBe(200);
    expect(await post(url, `127.0.0.1:${url.port}`)).toBe(200);
    expect(await post(url, `evil.example:${url.port}`)).toBe(403);
    const socket = new WebSocket(`wss://127.0.0.1:${url.port}`, ['imgd'], {
      ca: cert,
      origin: `https://127.0.0.1:${url.port}`,
      headers: { authorization: `Bearer ${token}` },
    });
    const answer = await new Promise((done, fail) => {
      socket.on('open', () => socket.send('{"jsonrpc":"2.0","id":1,"method":"ping"}'));
      socket.on('message', (data) => done(JSON.parse(String(data))));
      socket.on('error', fail);
    });
    expect(answer).toEqual({ jsonrpc: '2.0', id: 1, result: {} });
    socket.terminate();
    // Who speaks no TLS gets nothing.
    await expect(fetch(`http://127.0.0.1:${url.port}/metrics`)).rejects.toThrow();
  });
});

describe('a certificate', () => {
  it('is changed for new connections on SIGHUP, and kept where the new one makes no sense', async () => {
    const files = [file('changing.pem', cert, 0o644), file('changing-key.pem', key)] as const;
    const flags = ['--listen', '127.0.0.1:0', '--token-file', tokenFile];
    const daemon = await startDaemon(join(folder, 'c.sock'), [
      ...[...flags, '--tls-cert', files[0], '--tls-key', files[1]],
    ]);
    const name = (): Promise<string> =>
      new Promise((done, fail) => {
        const port = Number(address(daemon).port);
        const socket = connectTls({ host: '127.0.0.1', port, rejectUnauthorized: false }, () => {
          done(String(socket.getPeerCertificate().subject.CN));
          socket.destroy();
        });
        socket.on('error', fail);
      });
    const peer = await Peer.connect(daemon.socket);
    const message = async (msg: string): Promise<void> => {
      while (!daemon.log().some((line) => line.msg === msg)) await peer.call('ping');
    };
    expect(await name()).toBe('imgd.example');
    file('changing.pem', renewed.cert, 0o644);
    // Half of a renewal.
    daemon.process.kill('SIGHUP');
    await message('settings stay as they were');
    expect(await name()).toBe('imgd.example');
    file('changing-key.pem', renewed.key);
    daemon.process.kill('SIGHUP');
    await message('settings read again');
    expect(await name()).toBe('renewed.example');
  });
});

describe('the socket', () => {
  it('is for its user, or with --socket-mode for its group too', async () => {
    const group = process.getgid!();
    const path = join(folder, 'made', 'g.sock');
    await startDaemon(path, ['--socket-mode', '660', '--socket-group', String(group)]);
    expect(statSync(path).mode & 0o777).toBe(0o660);
    expect(statSync(path).gid).toBe(group);
    expect(statSync(dirname(path)).mode & 0o777).toBe(0o750);
  });

  it.runIf(asRoot)("gives the group's members the role that is meant for them", async () => {
    const path = join(folder, 'shared', 's.sock');
    const flags = ['--socket-mode', '660', '--socket-group', String(OTHER), '--group-role', 'watch'];
    const daemon = await startDaemon(path, flags);
    chmodSync(folder, 0o711);
    const script = `
      const socket = require('net').connect(${JSON.stringify(path)});
      let text = '';
      socket.on('data', (part) => { text += part; });
      socket.on('error', (error) => { text = error.code; });
      socket.on('close', () => process.stdout.write(text));
      socket.end('[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"shutdown"}]');`;
    const ask = (uid: number, gid: number): string =>
      spawnSync(process.execPath, ['-e', script], { uid, gid, cwd: '/', encoding: 'utf8' }).stdout;
    const answers = JSON.parse(ask(OTHER, OTHER)) as { id: number; error?: { data: { kind: string } } }[];
    expect(answers.find(({ id }) => id === 1)?.error).toBeUndefined();
    expect(answers.find(({ id }) => id === 2)?.error?.data.kind).toBe('forbidden');
    expect(ask(OTHER, OTHER + 1)).toBe('EACCES');
    const peer = await Peer.connect(path);
    const logged = () =>
      daemon.log().find((line) => line.msg === 'connected' && (line.peer as { uid: number }).uid === OTHER);
    while (logged() === undefined) await peer.call('ping');
    // Strangers are told of at the usual level.
    expect(logged()).toMatchObject({ level: 'info', role: 'watch', peer: { gid: OTHER } });
  });

  const refused = async (path: string): Promise<string> => {
    const daemon = await startDaemon(path);
    expect(await daemon.exited).toBe(1);
    return daemon.stderr();
  };

  it('is not made where others can put one in its place', async () => {
    const open = join(folder, 'open');
    mkdirSync(open);
    chmodSync(open, 0o777);
    expect(await refused(join(open, 'x.sock'))).toMatch(
      /^imgd: the socket's folder .* can be written by others/,
    );
    // With the sticky bit nobody removes what is another's.
    chmodSync(open, 0o1777);
    await startDaemon(join(open, 'x.sock'));
  });

  it.runIf(asRoot)(
    "is not made in another user's folder, nor in the place of another user's socket",
    async () => {
      const theirs = join(folder, 'theirs');
      mkdirSync(theirs);
      chownSync(theirs, OTHER, OTHER);
      expect(await refused(join(theirs, 'x.sock'))).toMatch(/belongs to another user \(54321\)\n$/);
      const sticky = join(folder, 'sticky');
      mkdirSync(sticky);
      chmodSync(sticky, 0o1777);
      const path = join(sticky, 'x.sock');
      const squatter = createServer().listen(path);
      await new Promise((done) => squatter.once('listening', done));
      chownSync(path, OTHER, OTHER);
      expect(await refused(path)).toMatch(/^imgd: the socket .* belongs to another user/);
      squatter.close();
    },
  );
});
