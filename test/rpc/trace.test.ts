/** Trace events of operations: through the command line in both of its modes, and over JSON-RPC. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { traceEventNames } from '../../src/protocol/trace.js';
import { qemuImg } from '../support/client.js';
import { tempDir } from '../support/reference.js';
import { Peer, type RunningDaemon, startDaemon } from './support/daemon.js';

const folder = tempDir();
const at = (name: string) => join(folder, name);
let daemon: RunningDaemon;
beforeAll(async () => {
  daemon = await startDaemon(at('t.sock'), [], { real: true });
  const data = Buffer.alloc(3 << 20);
  for (let offset = 0; offset < 2 << 20; offset += 512) data.writeUInt32LE(offset + 1, offset);
  writeFileSync(at('a.raw'), data);
  const made = qemuImg(['convert', '-f', 'raw', '-O', 'qcow2', 'a.raw', 'a.qcow2'], { cwd: folder });
  expect(made).toEqual({ status: 0, stdout: '', stderr: '' });
});
afterAll(() => void daemon.process.kill('SIGKILL'));

const names = (text: string) =>
  text
    .split('\n')
    .slice(0, -1)
    .map((line) => line.split(' ')[0]!);

describe.each(['in its own process', 'through a daemon'])('qemu-img -T %s', (mode) => {
  const call = (...args: string[]) =>
    qemuImg(args, {
      cwd: folder,
      env: { IMGD_SOCKET: mode === 'through a daemon' ? daemon.socket : '' },
    });
  const convert = ['convert', '-O', 'qcow2', 'a.qcow2', 'b.qcow2'];

  it('tells on stderr what is enabled and nothing else, and without it nothing', () => {
    expect(call(...convert)).toEqual({ status: 0, stdout: '', stderr: '' });
    expect(call('-T', 'nosuch*', ...convert)).toEqual({ status: 0, stdout: '', stderr: '' });
    const { status, stdout, stderr } = call('-T', 'bdrv_*', ...convert);
    expect({ status, stdout }).toEqual({ status: 0, stdout: '' });
    expect(new Set(names(stderr))).toEqual(
      new Set([
        'bdrv_open_common',
        'bdrv_close',
        'bdrv_co_preadv_part',
        'bdrv_co_pwritev_part',
        'bdrv_co_pwrite_zeroes',
        'bdrv_co_flush',
      ]),
    );
    const lines = stderr.split('\n');
    expect(lines[0]).toBe('bdrv_open_common bs 0x1 filename "a.qcow2" flags 0x0 format_name "file"');
    // What is opened is closed; and guest bytes and the file's are told of, both.
    const numbers = (event: string) =>
      lines.filter((line) => line.startsWith(`${event} `)).map((line) => /bs (\w+)/.exec(line)![1]!);
    expect(numbers('bdrv_close').sort()).toEqual(numbers('bdrv_open_common').sort());
    expect(stderr).toContain('bdrv_co_preadv_part bs 0x2 offset 0 bytes 2097152 flags 0x0\n');
    expect(stderr).toMatch(/bdrv_co_preadv_part bs 0x1 offset \d+ bytes 2097152 flags 0x0\n/);
    expect(stderr).toMatch(/bdrv_co_pwritev_part bs 0x5 offset 0 bytes 2097152 flags 0x0\n/);
  });

  it('tells of metadata, locks and stages of the work', () => {
    const { stderr } = call('-T', 'qcow2_*', '-T', 'file_*', '-T', 'job_*', ...convert);
    for (const line of [
      /^file_lock bs 0x1 filename "a.qcow2" uses 0x1 unshared 0xa$/m,
      /^qcow2_cache_get_read bs 0x2 is_l2_cache 1 offset 0x\w+$/m,
      /^qcow2_cache_entry_flush bs 0x5 is_l2_cache 0 offset 0x\w+$/m,
      /^qcow2_l1_update bs 0x5 offset 0x\w+$/m,
      /^job_phase phase "copy" total 3145728$/m,
    ]) {
      expect(stderr).toMatch(line);
    }
    expect(stderr).not.toContain('bdrv_');
  });

  it('tells each kind of request', () => {
    qemuImg(['create', '-q', '-f', 'qcow2', '-b', 'a.qcow2', '-F', 'qcow2', 'o.qcow2'], { cwd: folder });
    const written = call(
      '-T',
      'bdrv_*',
      'bench',
      '-w',
      '-c',
      '4',
      '-d',
      '1',
      '--flush-interval=2',
      '-f',
      'qcow2',
      'o.qcow2',
    );
    expect(names(written.stderr).filter((name) => name === 'bdrv_co_flush').length).toBeGreaterThan(2);
    const committed = call('-T', 'bdrv_co_*v_part', 'commit', 'o.qcow2');
    expect(committed.stdout).toBe('Image committed.\n');
    expect(committed.stderr).toMatch(/bdrv_co_preadv_part bs 0x2 offset 0 bytes 65536 flags 0x0/);
    const read = call('-T', 'bdrv_co_preadv_part', 'compare', 'o.qcow2', 'o.qcow2');
    expect(read.stdout).toBe('Images are identical.\n');
    expect(read.stderr).toMatch(/offset 0 bytes \d+ flags 0x0/);
    const packed = call('-T', 'bdrv_co_pwritev_part', 'convert', '-c', '-O', 'qcow2', 'a.qcow2', 'c.qcow2');
    expect(packed.stderr).toMatch(/bytes 65536 flags 0x20\n/);
    const zeros = call('-T', 'bdrv_*', 'convert', '-n', '-f', 'raw', '-O', 'qcow2', 'a.raw', 'b.qcow2');
    expect(zeros.stderr).toMatch(/bdrv_co_pwrite_zeroes bs \w+ offset 2097152 bytes 1048576 flags 0x\d/);
    const resized = call('-T', 'bdrv_co_truncate', 'resize', '-f', 'raw', '--shrink', 'a.raw', '3M');
    expect(resized.stderr).toMatch(/bdrv_co_truncate bs 0x1 bytes 3145728 prealloc off\n/);
  });

  it('writes to a file in place of stderr, also what an events file means', () => {
    writeFileSync(at('events'), 'bdrv_*\n-bdrv_co_*\n');
    expect(call('-T', 'events=events,file=log', 'info', 'a.qcow2')).toMatchObject({ status: 0, stderr: '' });
    expect(names(readFileSync(at('log'), 'utf8'))).toEqual([
      'bdrv_open_common',
      'bdrv_open_common',
      'bdrv_close',
      'bdrv_close',
    ]);
    expect(existsSync(at('nofile'))).toBe(false);
    const missing = call('-T', '*', 'info', 'nofile');
    expect(missing).toMatchObject({ status: 1, stdout: '' });
    expect(missing.stderr).toContain("Could not open 'nofile'");
  });

  it('keeps a name with a line end on its line', () => {
    const name = 'x\nbdrv_close bs 0x9';
    writeFileSync(at(name), 'x'.repeat(512));
    const { stderr } = call('-T', 'bdrv_open_common', 'info', '-f', 'raw', name);
    expect(stderr.split('\n')[0]).toBe(
      'bdrv_open_common bs 0x1 filename "x\\x0abdrv_close bs 0x9" flags 0x0 format_name "file"',
    );
    expect(new Set(names(stderr))).toEqual(new Set(['bdrv_open_common']));
  });
});

describe('over JSON-RPC', () => {
  const textOf = (peer: Peer, stream: string) =>
    peer
      .events('JOB_OUTPUT')
      .map(({ data }) => data as { stream: string; text?: string })
      .filter((data) => data.stream === stream)
      .map(({ text }) => text)
      .join('');

  it('is output of the job, of a stream of its own', async () => {
    const peer = await Peer.connect(daemon.socket);
    await peer.call('events-subscribe', { filter: { job: 't1' } });
    const answer = await peer.call('image-info', {
      cwd: folder,
      image: { filename: 'a.qcow2' },
      trace: ['bdrv_*', '-bdrv_co_*', 'nosuch'],
      job: { id: 't1' },
    });
    expect(answer.error).toBeUndefined();
    expect(names(textOf(peer, 'trace'))).toEqual([
      'bdrv_open_common',
      'bdrv_open_common',
      'bdrv_close',
      'bdrv_close',
    ]);
    expect(textOf(peer, 'stderr')).toBe("qemu-img: warning: trace event 'nosuch' does not exist\n");
  });

  it('tells who is refused a lock', async () => {
    const peer = await Peer.connect(daemon.socket);
    const node = { driver: 'qcow2', 'node-name': 'held', file: { driver: 'file', filename: at('a.qcow2') } };
    expect((await peer.call('blockdev-add', node)).error).toBeUndefined();
    await peer.call('events-subscribe', { filter: { job: 't2' } });
    const refused = await peer.call('image-resize', {
      cwd: folder,
      image: { filename: 'a.qcow2', format: 'qcow2' },
      size: 4 << 20,
      trace: ['file_lock_refused'],
      job: { id: 't2' },
    });
    expect(refused.error?.data?.kind).toBe('locked');
    expect(textOf(peer, 'trace')).toMatch(/^file_lock_refused filename "a.qcow2" lock "[\w ]+"\n$/);

    // Of a held node the requests of this job, and not those of another to the same one.
    await peer.call('events-subscribe', { filter: { job: 't3' } });
    const jobs = ['t3', 't4'].map((id) =>
      peer.call('image-compare', {
        a: { node: 'held' },
        b: { filename: at('a.raw'), format: 'raw' },
        ...(id === 't3' ? { trace: ['bdrv_open_common', 'bdrv_co_preadv_part'] } : {}),
        job: { id },
      }),
    );
    for (const job of jobs) expect((await job).error).toBeUndefined();
    const lines = textOf(peer, 'trace').split('\n');
    expect(lines).toContain('bdrv_open_common bs 0x1 filename "held" flags 0x2 format_name "qcow2"');
    const once = lines.filter((line) => line.startsWith('bdrv_co_preadv_part bs 0x1 offset 0 '));
    expect(once.length).toBe(1);
    await peer.call('blockdev-del', { 'node-name': 'held' });
  });

  it('tells which events there are, and refuses what are no patterns', async () => {
    const peer = await Peer.connect(daemon.socket);
    const { result } = await peer.call('query-trace-events');
    expect((result as { name: string }[]).map(({ name }) => name)).toEqual(traceEventNames);
    for (const trace of ['bdrv_*', [1], ['x'.repeat(257)], Array(257).fill('x')]) {
      const answer = await peer.call('image-info', { image: { filename: 'a.qcow2' }, trace });
      expect(answer.error?.data?.kind, JSON.stringify(trace).slice(0, 20)).toBe('invalid-params');
    }
  });
});
