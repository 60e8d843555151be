import { existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { run, tempDir } from '../support/reference.js';
import { fake, Peer, realMain, sleep, startDaemon } from './support/daemon.js';

const folder = tempDir();
let next = 1;
const socketPath = (): string => join(folder, `d${next++}`, 'imgd.sock');

describe('the daemon starts', () => {
  it('soon, with a folder and a socket for its user alone', async () => {
    const socket = socketPath();
    const from = performance.now();
    await startDaemon(socket);
    console.log(`start to listening: ${Math.round(performance.now() - from)} ms`);
    expect(statSync(join(socket, '..')).mode & 0o777).toBe(0o700);
    expect(statSync(socket).mode & 0o777).toBe(0o600);
  });

  it('but not a second time on one socket', async () => {
    const socket = socketPath();
    const first = await startDaemon(socket);
    const second = await startDaemon(socket);
    expect(await second.exited).toBe(1);
    expect(second.stderr()).toBe(`imgd: another imgd serves ${socket}\n`);
    const peer = await Peer.connect(socket);
    expect((await peer.call('query-status')).result.pid).toBe(first.process.pid);
  });

  it('once, when several start together', async () => {
    const socket = socketPath();
    const daemons = await Promise.all([1, 2, 3, 4].map(() => startDaemon(socket)));
    await sleep(300);
    expect(daemons.filter((each) => each.process.exitCode === null).length).toBe(1);
    expect((await (await Peer.connect(socket)).call('ping')).result).toEqual({});
  });

  it('over the socket of a dead one', async () => {
    const socket = socketPath();
    const first = await startDaemon(socket);
    first.process.kill('SIGKILL');
    await first.exited;
    expect(existsSync(socket)).toBe(true);
    await startDaemon(socket);
    expect((await (await Peer.connect(socket)).call('ping')).result).toEqual({});
  });

  it('but neither over a file nor over the socket of another program', async () => {
    const file = socketPath();
    mkdirSync(join(file, '..'));
    writeFileSync(file, 'precious');
    const one = await startDaemon(file);
    expect(await one.exited).toBe(1);
    expect(one.stderr()).toMatch(/^imgd: .* is not a socket\n$/);
    const taken = socketPath();
    mkdirSync(join(taken, '..'));
    const server = createServer().listen(taken);
    const two = await startDaemon(taken);
    expect(await two.exited).toBe(1);
    expect(two.stderr()).toMatch(/^imgd: another program serves/);
    expect(existsSync(taken)).toBe(true);
    server.close();
  });

  it('not with a bad flag, and says why in a line', () => {
    const bad = run(process.execPath, [realMain, '--frob']);
    expect(bad).toMatchObject({ status: 2, stderr: "imgd: Unknown option '--frob'\nTry 'imgd --help'.\n" });
    const help = run(process.execPath, [realMain, '--help']);
    expect(help).toMatchObject({ status: 0, stdout: expect.stringMatching(/^Usage: imgd/) });
    expect(run(process.execPath, [realMain, '--version'])).toMatchObject({
      status: 0,
      stdout: 'imgd 0.1.0\n',
    });
    const nowhere = run(process.execPath, [realMain, '--socket', '/proc/nowhere/imgd.sock']);
    expect(nowhere).toMatchObject({ status: 1, stderr: expect.stringMatching(/^imgd: cannot .*\n$/) });
  });
});

describe('the daemon stops', () => {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    it(`on ${signal}: jobs are cancelled and answered, nothing is left behind`, async () => {
      const daemon = await startDaemon(socketPath());
      const peer = await Peer.connect(daemon.socket);
      await peer.call('events-subscribe', {});
      const ids = ['a', 'b'].map((job) => peer.send('image-check', fake('steps:100000:10:5', { id: job })));
      const paused = peer.send('image-check', fake('steps:1:1:0', { id: 'c', paused: true }));
      await peer.status('b', 'running');
      await peer.status('c', 'paused');
      daemon.process.kill(signal);
      expect(await daemon.exited).toBe(0);
      await peer.closed;
      for (const id of [...ids, paused]) expect((await peer.answer(id)).error?.data?.kind).toBe('cancelled');
      expect(readdirSync(join(daemon.socket, '..'))).toEqual([]);
      expect(daemon.log().at(-1)).toMatchObject({ msg: 'stopped', level: 'info' });
    });
  }

  it('after its jobs with --drain, and starts no others', async () => {
    const daemon = await startDaemon(socketPath(), ['--drain', '--max-running', '1']);
    const peer = await Peer.connect(daemon.socket);
    const ids = [1, 2].map(() => peer.send('image-check', fake('steps:10:10:100')));
    await peer.call('ping');
    daemon.process.kill('SIGTERM');
    while ((await peer.call('query-status')).result.status === 'running') await sleep(10);
    expect((await peer.call('image-check', fake('steps:1:1:1'))).error?.data?.kind).toBe('shutting-down');
    expect((await peer.call('query-status')).result.status).toBe('stopping');
    for (const id of ids) expect((await peer.answer(id)).result).toEqual({ total: 100 });
    expect(await daemon.exited).toBe(0);
  });

  it('at once on a second signal', async () => {
    const daemon = await startDaemon(socketPath());
    const peer = await Peer.connect(daemon.socket);
    await peer.call('image-check', fake('deaf', { wait: false }));
    daemon.process.kill('SIGTERM');
    await sleep(200);
    expect(daemon.process.exitCode).toBeNull();
    daemon.process.kill('SIGTERM');
    expect(await daemon.exited).toBe(1);
    // The next daemon is to know of the job that was cut off.
    expect(readdirSync(join(daemon.socket, '..'))).toEqual(['imgd.sock.journal']);
  });

  it('after the kill timeout though a job does not', async () => {
    const daemon = await startDaemon(socketPath(), ['--kill-timeout', '1']);
    const peer = await Peer.connect(daemon.socket);
    const id = peer.send('image-check', fake('spin'));
    await peer.call('ping');
    daemon.process.kill('SIGTERM');
    expect(await daemon.exited).toBe(0);
    expect((await peer.answer(id)).error?.data?.kind).toBe('cancelled');
  });

  it('when a client says so, though another does not read', async () => {
    const daemon = await startDaemon(socketPath());
    const stuck = await Peer.connect(daemon.socket);
    await stuck.call('events-subscribe', {});
    stuck.socket.pause();
    const peer = await Peer.connect(daemon.socket);
    await peer.call('image-check', fake('lines:3000:1000'));
    expect((await peer.call('shutdown')).result).toEqual({});
    expect(await daemon.exited).toBe(0);
    await peer.closed;
  });

  it('and a queue of cancelled jobs does not start on the way', async () => {
    const daemon = await startDaemon(socketPath(), ['--max-running', '1']);
    const peer = await Peer.connect(daemon.socket);
    await peer.call('events-subscribe', { filter: { events: ['JOB_STATUS_CHANGE'] } });
    for (let n = 0; n < 5; n++) peer.send('image-check', fake('steps:10000:1:5', { id: `k${n}` }));
    await peer.status('k4', 'created');
    daemon.process.kill('SIGTERM');
    await daemon.exited;
    const ran = peer.events().filter((each) => (each.data as { status: string }).status === 'running');
    expect(ran.length).toBe(1);
  });
});
