/** Held images against QEMU's storage daemon: the same commands must get the same answers, and take the same locks. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { Peer, startDaemon } from '../rpc/support/daemon.js';
import { lockedBytes } from '../support/locked-bytes.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { StorageDaemon } from '../support/storage-daemon.js';

type Command = readonly [string, Record<string, unknown>];

const add = (options: Record<string, unknown>): Command => ['blockdev-add', options];
const del = (name: string): Command => ['blockdev-del', { 'node-name': name }];
const reopen = (...options: Record<string, unknown>[]): Command => ['blockdev-reopen', { options }];
const query: Command = ['query-named-block-nodes', {}];
const flat: Command = ['query-named-block-nodes', { flat: true }];

describeInterop('held images, as QEMU holds them', () => {
  const folder = tempDir();
  const at = (name: string) => join(folder, name);
  const images = ['a.qcow2', 'b.raw', 'o.qcow2', 'p.qcow2', 'd.dat', 'df.qcow2'];
  const file = (name: string, more = {}) => ({ driver: 'file', filename: at(name), ...more });
  const qcow2 = (node: string, name: string, more = {}) => ({
    driver: 'qcow2',
    'node-name': node,
    file: file(name),
    ...more,
  });
  const raw = (node: string, more: Record<string, unknown>) => ({
    driver: 'raw',
    'node-name': node,
    ...more,
  });
  const children: { kill(signal: 'SIGKILL'): unknown }[] = [];
  afterAll(() => {
    for (const child of children) child.kill('SIGKILL');
  });

  function createImages(): void {
    for (const name of images) rmSync(at(name), { force: true });
    const create = (...args: string[]) =>
      expect(run(reference.qemuImg!, ['create', '-q', ...args]).status).toBe(0);
    create('-f', 'qcow2', at('a.qcow2'), '16M');
    create('-f', 'raw', at('b.raw'), '16M');
    create('-f', 'qcow2', '-b', at('b.raw'), '-F', 'raw', at('o.qcow2'));
    create('-f', 'qcow2', '-b', at('o.qcow2'), '-F', 'qcow2', at('p.qcow2'));
    create('-f', 'qcow2', '-o', `data_file=${at('d.dat')},data_file_raw=on`, at('df.qcow2'), '16M');
  }

  /** Names that a daemon made up itself are told apart by the order in which they come. */
  function plain(value: unknown): unknown {
    const names = new Map<string, string>();
    const text = JSON.stringify(value).replace(/#block\d+/g, (name) => {
      if (!names.has(name)) names.set(name, `#${names.size}`);
      return names.get(name)!;
    });
    return JSON.parse(text);
  }

  const locks = (pid: number) => images.map((name) => `${name}: ${lockedBytes(pid, at(name))}`);

  async function same(commands: readonly Command[]): Promise<void> {
    createImages();
    const qemu = await StorageDaemon.start(folder);
    children.push(qemu.process);
    const expected: unknown[] = [];
    for (const [name, params] of commands) {
      const answer = await qemu.call(name, params);
      expected.push([plain(answer.error?.desc ?? answer.return), locks(qemu.process.pid!)]);
    }
    qemu.process.kill('SIGKILL');
    await new Promise((resolve) => qemu.process.on('close', resolve));
    createImages();
    const ours = await startDaemon(at('d.sock'), [], { real: true });
    const peer = await Peer.connect(ours.socket);
    for (const [index, [name, params]] of commands.entries()) {
      const { error, result } = await peer.call(name, params);
      const found = [plain(error?.message ?? result), locks(ours.process.pid!)];
      expect(found, `${index}: ${name} ${JSON.stringify(params)}`).toEqual(expected[index]);
    }
  }

  const there = it.skipIf(reference.qemuStorageDaemon === undefined);

  there('what is told of each kind of node, and the locks that it takes', () =>
    same(
      [
        raw('x', { file: file('b.raw') }),
        raw('x', { file: file('b.raw'), 'read-only': true }),
        raw('x', { file: file('b.raw'), offset: 512 }),
        raw('x', { file: { driver: 'null-co', size: 1_048_576 }, offset: 512, size: 512 }),
        raw('x', { file: { driver: 'qcow2', file: file('a.qcow2') } }),
        qcow2('x', 'a.qcow2'),
        qcow2('x', 'a.qcow2', { 'read-only': true }),
        qcow2('x', 'a.qcow2', { 'read-only': true, 'force-share': true }),
        qcow2('x', 'a.qcow2', { 'auto-read-only': true }),
        qcow2('x', 'a.qcow2', { file: file('a.qcow2', { locking: 'off', 'node-name': 'named' }) }),
        qcow2('x', 'a.qcow2', { cache: { 'no-flush': true }, discard: 'unmap', 'detect-zeroes': 'unmap' }),
        qcow2('x', 'p.qcow2'),
        qcow2('x', 'o.qcow2', { backing: null }),
        qcow2('x', 'p.qcow2', { backing: qcow2('mid', 'o.qcow2', { backing: null }) }),
        qcow2('x', 'a.qcow2', { backing: raw('low', { file: file('b.raw') }) }),
        qcow2('x', 'df.qcow2'),
        { driver: 'file', 'node-name': 'x', filename: at('a.qcow2') },
        { driver: 'null-co', 'node-name': 'x', size: 1_048_576, 'read-zeroes': true },
        { driver: 'blkdebug', 'node-name': 'x', image: file('a.qcow2') },
      ].flatMap((options) => [add(options), query, flat, del('x')]),
    ),
  );

  there('what is wrong with options', () =>
    same([
      ...[
        { driver: 'qcow2', file: file('a.qcow2') },
        qcow2('1x', 'a.qcow2'),
        qcow2('x'.repeat(40), 'a.qcow2'),
        { driver: 'zork', 'node-name': 'z' },
        { driver: 'qcow2', 'node-name': 'z' },
        { driver: 'qcow2', 'node-name': 'z', file: 'nope' },
        { driver: 'qcow2', 'node-name': 'z', file: { driver: 'file' } },
        { driver: 'qcow2', 'node-name': 'z', file: { filename: at('a.qcow2') } },
        { driver: 'qcow2', 'node-name': 'z', file: 3 },
        { driver: 'qcow2', 'node-name': 'z', file: null },
        { driver: 'null-co', 'node-name': 'z', size: '1M' },
        { driver: 'file', 'node-name': 'z', filename: '/' },
        { driver: 'file', 'node-name': 'z', filename: at('b.raw'), locking: 'zork' },
        qcow2('z', 'none'),
        qcow2('z', 'b.raw', { zork: 1 }),
        qcow2('z', 'b.raw', { 'read-only': true }),
        qcow2('z', 'a.qcow2', { file: file('a.qcow2', { zork: 1 }) }),
        qcow2('z', 'a.qcow2', { file: file('a.qcow2', { 'read-only': true }) }),
        qcow2('z', 'a.qcow2', { 'force-share': true }),
        qcow2('z', 'a.qcow2', { 'lazy-refcounts': 'x' }),
        qcow2('z', 'a.qcow2', { backing: 'nope', 'read-only': true }),
        qcow2('z', 'a.qcow2', { backing: raw('y', { file: file('nope') }), 'read-only': true }),
        qcow2('z', 'a.qcow2', { 'detect-zeroes': 'unmap' }),
        raw('z', { file: file('b.raw'), offset: 5.5 }),
      ].map(add),
      query,
    ]),
  );

  there('nodes on nodes: who may use one, and when it may go', () =>
    same([
      add({ driver: 'file', 'node-name': 'f', filename: at('a.qcow2') }),
      add({ driver: 'qcow2', 'node-name': 'w', file: 'f' }),
      add({ driver: 'qcow2', 'node-name': 'w2', file: 'f' }),
      add({ driver: 'qcow2', 'node-name': 'w3', file: 'w' }),
      add(qcow2('w', 'p.qcow2')),
      add(qcow2('w4', 'a.qcow2')),
      add(raw('r', { file: 'f', 'read-only': true })),
      ...['f', 'w', 'r', 'f', 'f'].map(del),
      add(qcow2('base', 'o.qcow2', { 'read-only': true })),
      add(qcow2('top', 'p.qcow2', { backing: 'base' })),
      add(qcow2('other', 'a.qcow2', { backing: 'base' })),
      query,
      ...['base', 'top', 'base', 'other', 'base'].map(del),
      add({ driver: 'file', 'node-name': 'ro', filename: at('a.qcow2'), 'read-only': true }),
      add({ driver: 'qcow2', 'node-name': 'w', file: 'ro' }),
      add({ driver: 'qcow2', 'node-name': 'w', file: 'ro', 'auto-read-only': true }),
      add({ driver: 'qcow2', 'node-name': 'w', file: 'ro', 'read-only': true }),
      query,
    ]),
  );

  there('reopening', () => {
    const a = { driver: 'qcow2', 'node-name': 'n', file: 'nf' };
    const o = qcow2('o', 'o.qcow2', { file: file('o.qcow2', { 'node-name': 'of' }) });
    return same([
      add(qcow2('n', 'a.qcow2', { file: file('a.qcow2', { 'node-name': 'nf' }) })),
      reopen({ ...a, 'read-only': true }),
      query,
      reopen({ driver: 'qcow2', 'node-name': 'n' }),
      reopen({ ...a, driver: 'raw' }),
      reopen({ ...a, 'node-name': 'nope' }),
      reopen({ driver: 'qcow2', file: 'nf' }),
      reopen({ ...a, file: file('b.raw') }),
      reopen({ ...a, 'force-share': true, 'read-only': true }),
      query,
      del('nf'),
      del('n'),
      add({ ...o, backing: raw('ob', { file: file('b.raw') }) }),
      del('ob'),
      reopen({ ...o, file: 'of' }),
      reopen({ ...o, file: 'of', backing: null }),
      query,
      del('ob'),
      add(raw('nb', { file: file('b.raw'), 'read-only': true })),
      reopen({ ...o, file: 'of', backing: 'nb' }),
      query,
      del('nb'),
      del('o'),
      del('nb'),
      add(qcow2('s', 'a.qcow2', { 'read-only': true, 'force-share': true })),
      reopen(qcow2('s', 'a.qcow2', { 'read-only': true })),
      query,
    ]);
  });
});
