/** The daemon with the real engine: what a client needs of each operation, end to end. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { reference, tempDir } from '../support/reference.js';
import { Peer, type RunningDaemon, startDaemon } from './support/daemon.js';

const folder = tempDir();
let daemon: RunningDaemon;
beforeAll(async () => {
  daemon = await startDaemon(join(folder, 'o.sock'), [], { real: true });
});
afterAll(() => void daemon.process.kill('SIGKILL'));

describe('operations through the daemon', () => {
  it('create, write, look, map, check and compare images', async () => {
    const peer = await Peer.connect(daemon.socket);
    const cwd = folder;
    const data = Buffer.alloc(3 << 20);
    for (let at = 0; at < data.length; at += 4096) data.writeUInt32LE(at, at);
    writeFileSync(join(folder, 'a.raw'), data);

    const created = await peer.call('image-create', {
      cwd,
      filename: 'e.qcow2',
      format: 'qcow2',
      size: 1 << 30,
    });
    expect(created.error).toBeUndefined();
    expect(created.result).toMatchObject({ format: 'qcow2', size: 1 << 30 });

    await peer.call('events-subscribe', { filter: { job: 'convert' } });
    const converted = await peer.call('image-convert', {
      cwd,
      sources: [{ filename: 'a.raw', format: 'raw' }],
      target: { filename: 'b.qcow2', format: 'qcow2' },
      job: { id: 'convert' },
    });
    expect(converted.error).toBeUndefined();
    expect(converted.result).toMatchObject({ size: data.length });
    expect(peer.events('JOB_PROGRESS').at(-1)!.data).toMatchObject({ percent: 100 });

    const info = await peer.call('image-info', { cwd, image: { filename: 'b.qcow2' } });
    expect(info.result.images[0]).toMatchObject({ format: 'qcow2', 'virtual-size': data.length });
    const map = await peer.call('image-map', { cwd, image: { filename: 'b.qcow2' } });
    expect(map.result.count).toBeGreaterThan(0);
    const check = await peer.call('image-check', { cwd, image: { filename: 'b.qcow2' } });
    expect(check.result.check).toMatchObject({ 'check-errors': 0, format: 'qcow2' });
    const same = await peer.call('image-compare', {
      cwd,
      a: { filename: 'a.raw', format: 'raw' },
      b: { filename: 'b.qcow2' },
    });
    expect(same.result).toMatchObject({ identical: true });
  });

  it('leave no lock and no half image when cancelled', async () => {
    const peer = await Peer.connect(daemon.socket);
    writeFileSync(join(folder, 'big.raw'), Buffer.alloc(32 << 20, 7));
    await peer.call('events-subscribe', { filter: { job: 'cut' } });
    const id = peer.send('image-convert', {
      cwd: folder,
      sources: [{ filename: 'big.raw', format: 'raw' }],
      target: { filename: 'cut.qcow2', format: 'qcow2' },
      'rate-limit': 4 << 20,
      job: { id: 'cut' },
    });
    await peer.until(() => peer.events('JOB_PROGRESS')[0]);
    await peer.call('job-cancel', { id: 'cut' });
    expect((await peer.answer(id)).error?.data?.kind).toBe('cancelled');
    const again = await peer.call('image-create', {
      cwd: folder,
      filename: 'cut.qcow2',
      format: 'qcow2',
      size: 65536,
    });
    expect(again.error).toBeUndefined();
  });

  it('leave no lock when their worker is ended by force', async () => {
    const peer = await Peer.connect(daemon.socket);
    writeFileSync(join(folder, 'held.raw'), Buffer.alloc(32 << 20, 7));
    await peer.call('events-subscribe', { filter: { job: 'force' } });
    const id = peer.send('image-convert', {
      cwd: folder,
      sources: [{ filename: 'held.raw', format: 'raw' }],
      target: { filename: 'held.qcow2', format: 'qcow2' },
      'rate-limit': 4 << 20,
      job: { id: 'force' },
    });
    await peer.until(() => peer.events('JOB_PROGRESS')[0]);
    const before = (await peer.call('image-info', { cwd: folder, image: { filename: 'held.qcow2' } })).error;
    expect(before?.data?.kind).toBe('locked');
    await peer.call('job-cancel', { id: 'force', force: true });
    expect((await peer.answer(id)).error?.data?.kind).toBe('cancelled');
    const after = await peer.call('image-create', {
      cwd: folder,
      filename: 'held.qcow2',
      format: 'qcow2',
      size: 65536,
    });
    expect(after.error).toBeUndefined();
  });

  it('open nothing outside the roots', async () => {
    const root = join(folder, 'root');
    mkdirSync(root);
    writeFileSync(join(folder, 'secret.raw'), Buffer.alloc(65536));
    writeFileSync(join(root, 'ours.raw'), Buffer.alloc(65536));
    const rooted = await startDaemon(join(folder, 'root.sock'), ['--root', root], { real: true });
    const peer = await Peer.connect(rooted.socket);
    const look = async (filename: string) =>
      peer.call('image-info', { cwd: root, image: { filename, format: 'raw' } });
    expect((await look('ours.raw')).error).toBeUndefined();
    expect((await look('../secret.raw')).error?.data).toMatchObject({ kind: 'denied' });
    expect((await look('/etc/passwd')).error?.data).toMatchObject({ kind: 'denied' });
  });

  it('prints how long image-info takes beside the reference, and the memory of the daemon', async () => {
    const peer = await Peer.connect(daemon.socket);
    const image = join(folder, 'e.qcow2');
    expect(statSync(image).size).toBeGreaterThan(0);
    const times: number[] = [];
    for (let n = 0; n < 200; n++) {
      const from = performance.now();
      const { error } = await peer.call('image-info', { image: { filename: image } });
      expect(error).toBeUndefined();
      times.push(performance.now() - from);
    }
    times.sort((a, b) => a - b);
    const lines = [
      `image-info by a connected client: median ${times[100]!.toFixed(2)} ms, p99 ${times[197]!.toFixed(2)} ms`,
    ];
    if (reference.qemuImg !== undefined) {
      const theirs: number[] = [];
      for (let n = 0; n < 15; n++) {
        const from = performance.now();
        spawnSync(reference.qemuImg, ['info', image]);
        theirs.push(performance.now() - from);
      }
      theirs.sort((a, b) => a - b);
      lines.push(`a reference qemu-img info: median ${theirs[7]!.toFixed(2)} ms`);
    }
    const rss = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${daemon.process.pid}/status`, 'utf8'))?.[1];
    lines.push(`memory of the daemon: ${Math.round(Number(rss) / 1024)} MiB`);
    console.log(lines.join('\n'));
  });
});
