/** `imgd status`, `jobs`, `events`, `cancel`, `inspect`: what a person at a shell sees. */
import { spawn } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { type RunResult, run, tempDir } from '../support/reference.js';
import { fake, Peer, type RunningDaemon, realMain, startDaemon } from './support/daemon.js';

const folder = tempDir();
const socket = join(folder, 's.sock');
const asRoot = process.getuid!() === 0;
let daemon: RunningDaemon;
let peer: Peer;

beforeAll(async () => {
  daemon = await startDaemon(socket);
  peer = await Peer.connect(socket);
});
afterAll(() => void daemon.process.kill('SIGKILL'));

const imgd = (args: string[], env: NodeJS.ProcessEnv = { IMGD_SOCKET: socket }): RunResult =>
  run(process.execPath, [realMain, ...args], { cwd: folder, env });

describe('at a shell', () => {
  it('status tells how the daemon is', () => {
    const { status, stdout } = imgd(['status']);
    expect(status).toBe(0);
    expect(stdout).toMatch(
      /^imgd {5}0\.1\.0, running, process \d+, up \d+ s\njobs {5}none\nworkers {2}\d+ busy/,
    );
    expect(JSON.parse(imgd(['status', '--json']).stdout)).toMatchObject({
      version: '0.1.0',
      pid: daemon.process.pid,
    });
  });

  it('jobs lists them, cancel cancels one', async () => {
    expect(imgd(['jobs']).stdout).toBe('no jobs\n');
    for (const job of ['long-copy', 'bad']) await peer.call('events-subscribe', { filter: { job } });
    await peer.call('image-check', fake('steps:100000:1000:5', { id: 'long-copy', wait: false }));
    await peer.call('image-check', fake('fail', { id: 'bad', wait: false, 'auto-dismiss': false }));
    await peer.status('bad', 'concluded');
    await peer.until(() => peer.events('JOB_PROGRESS')[0]);
    const { stdout } = imgd(['jobs']);
    expect(stdout).toMatch(/^ID +OPERATION +STATE +AGE +PROGRESS\n/);
    expect(stdout).toMatch(/^long-copy {2}image-check {2}running +\d+ s +\d\.\d\d %, .* of 95\.4 MiB/m);
    expect(stdout).toMatch(/^bad .*concluded +\d+ s +error while writing: No space left on device$/m);
    expect((JSON.parse(imgd(['jobs', '--json']).stdout) as unknown[]).length).toBe(2);
    expect(imgd(['cancel', 'long-copy'])).toMatchObject({ status: 0, stdout: '', stderr: '' });
    await peer.status('long-copy', 'concluded');
    expect(imgd(['cancel', 'nothing'])).toMatchObject({
      status: 1,
      stderr: "imgd: Job 'nothing' not found\n",
    });
  });

  it('events tells what happens, and shows no control characters', async () => {
    const child = spawn(process.execPath, [realMain, 'events', 'told'], {
      env: { ...process.env, IMGD_SOCKET: socket },
    });
    onTestFinished(() => void child.kill('SIGKILL'));
    let text = '';
    child.stdout.on('data', (part) => {
      text += part;
    });
    while ((await peer.call('query-status')).result.subscriptions < 3) {
      // it is starting
    }
    await peer.call('image-check', fake('lines:1:10', { id: 'told' }));
    while (!text.includes('status=null')) await new Promise((done) => child.stdout.once('data', done));
    expect(text).toMatch(/^\d{4}-\S+Z JOB_STATUS_CHANGE id=told status=created type=image-check\n/);
    expect(text).toContain('text=0.........\\u{a}\n');
    const gone = new Promise((done) => child.on('close', (_, signal) => done(signal)));
    child.kill('SIGINT');
    expect(await gone).toBe('SIGINT');
  });

  it('inspect says whether an image is safe, with and without a daemon', () => {
    writeFileSync(join(folder, 'plain.raw'), Buffer.alloc(4096));
    const extent =
      '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n';
    writeFileSync(join(folder, 'bad.vmdk'), `${extent}RW 8 FLAT "/etc/\u001bpasswd" 0\n`);
    const none = { IMGD_SOCKET: join(folder, 'nobody.sock') };
    const good = imgd(['inspect', '--format', 'raw', 'plain.raw'], none);
    expect(good).toMatchObject({ status: 0, stderr: '' });
    expect(good.stdout).toMatch(
      /^plain\.raw: raw, 4\.0 KiB for the guest, a file of 4\.0 KiB\nPASS {2}format /,
    );
    expect(good.stdout).toMatch(/\nsafe\n$/);
    const bad = imgd(['inspect', 'bad.vmdk'], none);
    expect(bad.status).toBe(3);
    expect(bad.stdout).toContain('FAIL  extents');
    expect(bad.stdout).toContain('/etc/\\u{1b}passwd');
    expect(bad.stdout).toMatch(/\nNOT SAFE\n$/);
    expect(JSON.parse(imgd(['inspect', '--json', 'bad.vmdk'], none).stdout)).toMatchObject({ safe: false });
    const gone = imgd(['inspect', 'gone'], none);
    expect(gone).toMatchObject({ status: 1, stdout: '' });
    expect(gone.stderr).toBe("imgd: Could not open 'gone': No such file or directory\n");
    // The daemon is asked where there is one: this one has fake operations, which know no `safe`.
    const asked = imgd(['inspect', '--json', 'plain.raw']);
    expect(JSON.parse(asked.stdout).params.filename).toBe('plain.raw');
  });

  it('says what is wrong in a line', () => {
    expect(imgd(['frob'])).toMatchObject({
      status: 2,
      stderr: "imgd: there is no command 'frob'\nTry 'imgd --help'.\n",
    });
    expect(imgd(['cancel'])).toMatchObject({
      status: 2,
      stderr: "imgd cancel: takes ID\nTry 'imgd cancel --help'.\n",
    });
    expect(imgd(['jobs', 'x']).stderr).toMatch(/^imgd jobs: takes no words\n/);
    expect(imgd(['jobs', '--frob']).stderr).toMatch(/^imgd jobs: Unknown option '--frob'\n/);
    expect(imgd(['events', '--since', 'x']).stderr).toBe('imgd: --since takes a number\n');
    expect(imgd(['status', '--socket', join(folder, 'no.sock')])).toMatchObject({
      status: 1,
      stderr: `imgd: no daemon at ${join(folder, 'no.sock')}\n`,
    });
    expect(imgd(['inspect', '--help']).stdout).toMatch(/^Usage: imgd inspect \[OPTION\]\.\.\. FILE\n/);
    expect(imgd(['--help']).stdout).toMatch(/imgd inspect FILE/);
  });

  it.runIf(asRoot)("does not speak to another user's socket in the usual place", async (context) => {
    const become = (uid: number): string[] => [`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups'];
    if (run('setpriv', [...become(54322), 'test', '-r', realMain]).status !== 0) {
      console.warn('other users cannot read the program: not tried');
      context.skip();
    }
    const runtime = join(folder, 'runtime');
    mkdirSync(join(runtime, 'imgd'), { recursive: true });
    const trap = createServer().listen(join(runtime, 'imgd', 'imgd.sock'));
    onTestFinished(() => void trap.close());
    await new Promise((done) => trap.once('listening', done));
    chownSync(join(runtime, 'imgd', 'imgd.sock'), 54321, 54321);
    chmodSync(folder, 0o711);
    const { stderr } = run('setpriv', [...become(54322), process.execPath, realMain, 'status'], {
      cwd: '/',
      env: { IMGD_SOCKET: '', XDG_RUNTIME_DIR: runtime },
    });
    expect(stderr).toMatch(/^imgd: the socket .* belongs to another user \(54321\)/);
  });
});
