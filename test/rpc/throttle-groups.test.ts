/** Throttle groups of QMP: shared by the held nodes that name them, and in nobody's way when something ends. */
import { writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { reference, run, tempDir } from '../support/reference.js';
import { besideReference, holdImage, inTurn, QmpPeer, serveQmp } from './support/qmp.js';

const folder = tempDir();
const MiB = 2 ** 20;

const group = (id: string, limits?: object) =>
  ['object-add', { 'qom-type': 'throttle-group', id, ...(limits && { limits }) }] as const;
const node = (name: string, of: unknown, file: unknown, more = {}) =>
  ['blockdev-add', { driver: 'throttle', 'node-name': name, 'throttle-group': of, file, ...more }] as const;
const del = (name: string) => ['blockdev-del', { 'node-name': name }] as const;
const delGroup = (id: string) => ['object-del', { id }] as const;

const describeStorageDaemon = reference.qemuStorageDaemon === undefined ? describe.skip : describe;

describeStorageDaemon('throttle groups, as the reference has them', () => {
  it('are checked, found, and kept while they are in use', () =>
    besideReference(folder, 'groups', async (peer, at) => {
      writeFileSync(at('a.raw'), Buffer.alloc(MiB));
      const file = { driver: 'file', filename: at('a.raw') };
      await peer.ok('qmp_capabilities');
      const seen = await inTurn(peer, [
        group('t0', { 'bps-total': 100_000_000 }),
        group('t1', { 'bps-total': 1000, 'bps-read': 1 }),
        group('t1', { 'bps-total': -1 }),
        group('t1', { 'bps-total-max': 1 }),
        group('t1', { 'iops-size': 1 }),
        group('t1', { 'bps-total': 10, 'bps-total-max': 100, 'bps-total-max-length': 0 }),
        group('t1', { 'bps-total': 10, 'bps-total-max': 1 }),
        group('t1', { 'bps-total': 10, 'bps-total-max-length': 2 }),
        group('t1', { 'bps-total': 2_000_000_000_000_000 }),
        group('t2'),
        group('t0', { 'bps-total': -1 }),
        group('t0'),
        node('n0', 't0', { ...file, 'node-name': 'f0' }),
        node('n1', 'nope', file),
        node('n1', undefined, file),
        node('n1', 1, file),
        node('n1', '', 'n0'),
        node('n1', 't0', undefined),
        node('n1', 't0', 'nofile'),
        node('n1', 't0', 'f0', { zz: 1 }),
        node('n1', 't0', 'f0', { 'read-only': true }),
        node('n2', 't2', 'n1', { 'read-only': true }),
        delGroup('t0'),
        delGroup('t2'),
        delGroup('t1'),
        del('n2'),
        delGroup('t2'),
        del('n0'),
        delGroup('t0'),
        del('n1'),
        delGroup('t0'),
        delGroup('t0'),
      ]);
      return JSON.stringify(seen).replaceAll(at(''), '');
    }));
});

describe('throttle groups', () => {
  const bench = (image: string, more = {}) => ({
    image: { node: image },
    ...{ count: 16, depth: 4, 'buffer-size': 64 * 1024, step: 64 * 1024 },
    ...more,
  });

  /** Two raw nodes over throttle nodes of one group. */
  async function two(limits: object) {
    const { socket, at, daemon } = await serveQmp(folder);
    const qmp = await QmpPeer.ready(socket);
    await qmp.ok(...group('tg0', limits));
    for (const name of ['a', 'b']) {
      writeFileSync(at(name), Buffer.alloc(4 * MiB));
      await qmp.ok(...node(`${name}-t`, 'tg0', { driver: 'file', filename: at(name) }));
      await qmp.ok('blockdev-add', { driver: 'raw', 'node-name': name, file: `${name}-t` });
    }
    return { qmp, at, socket, daemon };
  }

  it('limit what the jobs of all their nodes do together', async () => {
    const { qmp, socket } = await two({ 'bps-total': 2 * MiB });
    const other = await QmpPeer.ready(socket);
    const began = Date.now();
    await Promise.all([
      qmp.ok('x-imgd-image-bench', bench('a')),
      other.ok('x-imgd-image-bench', bench('b', { write: true })),
    ]);
    // 2 MiB, of which a tenth of a second's worth and one request pass at once.
    expect(Date.now() - began).toBeGreaterThan(700);
    expect(Date.now() - began).toBeLessThan(5000);
  });

  it('count requests of one direction alone where they say so', async () => {
    const { qmp } = await two({ 'iops-write': 10 });
    const timed = async (more: object) => {
      const began = Date.now();
      await qmp.ok('x-imgd-image-bench', bench('a', more));
      return Date.now() - began;
    };
    const reading = await timed({ count: 400 });
    const writing = await timed({ count: 12, write: true });
    expect(writing).toBeGreaterThan(700);
    // Limited, 400 reads would take 40 s.
    expect(reading).toBeLessThan(5000);
  });

  it('let a job that waits be cancelled at once, and the next one wait again', async () => {
    const { qmp } = await two({ 'bps-total': 1024 });
    for (const [job, write] of [
      ['first', false],
      ['second', true],
    ] as const) {
      await qmp.ok(
        'x-imgd-image-bench',
        bench('a', { write, job: { id: job, wait: false, 'auto-dismiss': false } }),
      );
      await qmp.status(job, 'running');
      await new Promise((resolve) => setTimeout(resolve, 300));
      const [info] = (await qmp.ok('query-jobs')) as unknown as { status: string }[];
      expect(info!.status).toBe('running');
      const began = Date.now();
      await qmp.ok('job-cancel', { id: job });
      await qmp.status(job, 'concluded');
      expect(Date.now() - began).toBeLessThan(2000);
      await qmp.ok('job-dismiss', { id: job });
    }
    await qmp.ok(...del('a'));
  });

  it('hold up neither what changes the graph nor the end of the daemon, and no write is lost', async () => {
    const { socket, at, daemon } = await serveQmp(folder);
    const qmp = await QmpPeer.ready(socket);
    await holdImage(qmp, at('q'));
    await qmp.ok(...del('disk'));
    await qmp.ok(...group('tg0', { 'bps-total': 64 * 1024 }));
    await qmp.ok(...node('slow', 'tg0', 'disk-file'));
    const began = Date.now();
    await qmp.ok('blockdev-add', { driver: 'qcow2', 'node-name': 'disk', file: 'slow' });
    // 1 MiB at 64 KiB a second.
    await qmp.ok('x-imgd-image-bench', {
      ...bench('disk', { write: true, pattern: 7 }),
      job: { id: 'j', wait: false },
    });
    await qmp.status('j', 'running');
    await qmp.ok('query-named-block-nodes');
    await qmp.ok('quit');
    await qmp.closed;
    await new Promise((resolve) => daemon.process.exitCode ?? daemon.process.once('exit', resolve));
    expect(Date.now() - began).toBeLessThan(8000);
    if (reference.qemuImg !== undefined) expect(run(reference.qemuImg, ['check', at('q')]).status).toBe(0);
  });
});
