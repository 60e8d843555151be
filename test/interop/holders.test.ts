/**
 * One image, two that want it: imgd's held images (two daemons), jobs of imgd, QEMU's storage daemon and the reference's tools, in
 * every combination of reading, writing and force-share. Whoever comes second must meet what it would meet among QEMU's own.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { Peer, startDaemon } from '../rpc/support/daemon.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { StorageDaemon } from '../support/storage-daemon.js';

type Format = 'raw' | 'qcow2';
type Mode = 'read' | 'write' | 'force-share';
const MODES: readonly Mode[] = ['read', 'write', 'force-share'];

/** Opens and closes the image; `open` gives the error, or nothing where it was let in. */
interface Party {
  open(path: string, format: Format, mode: Mode): Promise<string | undefined>;
  close(): Promise<void>;
}

const storageDaemon = reference.qemuStorageDaemon;

function options(path: string, format: Format, mode: Mode): Record<string, unknown> {
  return {
    driver: format,
    'node-name': 'held',
    'read-only': mode !== 'write',
    'force-share': mode === 'force-share',
    file: { driver: 'file', filename: path },
  };
}

describeInterop('holders of one image', () => {
  const folder = tempDir();
  const children: ChildProcess[] = [];
  const parties: Record<string, Party> = {};
  let count = 0;

  function image(format: Format): string {
    const path = join(folder, `h${++count}.${format}`);
    expect(run(reference.qemuImg!, ['create', '-q', '-f', format, path, '1M']).status).toBe(0);
    return path;
  }

  async function imgd(name: string): Promise<Peer> {
    const daemon = await startDaemon(join(folder, `${name}.sock`), [], { real: true });
    children.push(daemon.process);
    return Peer.connect(daemon.socket);
  }

  function held(peer: Peer): Party {
    return {
      async open(path, format, mode) {
        return (await peer.call('blockdev-add', options(path, format, mode))).error?.message;
      },
      async close() {
        expect((await peer.call('blockdev-del', { 'node-name': 'held' })).error).toBeUndefined();
      },
    };
  }

  function job(peer: Peer): Party {
    return {
      async open(path, format, mode) {
        const ref = { filename: path, format, ...(mode === 'force-share' ? { 'force-share': true } : {}) };
        const params = { image: ref, count: 1, write: mode === 'write', 'flush-interval': 0 };
        const { error } = await peer.call('image-bench', params);
        return error?.message.replace(`Could not open '${path}': `, '');
      },
      close: async () => {},
    };
  }

  async function qemu(): Promise<Party> {
    const peer = await StorageDaemon.start();
    children.push(peer.process);
    return {
      async open(path, format, mode) {
        return (await peer.call('blockdev-add', options(path, format, mode))).error?.desc;
      },
      async close() {
        expect((await peer.call('blockdev-del', { 'node-name': 'held' })).error).toBeUndefined();
      },
    };
  }

  /** qemu-io, which uses the image and does not only hold it. */
  function tool(): Party {
    let child: ChildProcess | undefined;
    return {
      open(path, format, mode) {
        const flags = { read: ['-r'], write: [], 'force-share': ['-r', '-U'] }[mode];
        const started = spawn(reference.qemuIo!, [...flags, '-f', format, path], { stdio: 'pipe' });
        child = started;
        children.push(started);
        return new Promise((resolve) => {
          let said = '';
          let wrong = '';
          started.stderr.on('data', (chunk: Buffer) => {
            wrong += chunk.toString();
          });
          started.stdout.on('data', (chunk: Buffer) => {
            said += chunk.toString();
            if (said.includes('qemu-io> ')) resolve(undefined);
          });
          started.on('close', () => {
            const first = wrong.trim().split('\n')[0]!;
            resolve(first.replace(`qemu-io: can't open device ${path}: `, ''));
          });
        });
      },
      async close() {
        const { stdin } = child!;
        const gone = new Promise((resolve) => child!.on('close', resolve));
        stdin!.end('quit\n');
        await gone;
      },
    };
  }

  beforeAll(async () => {
    const [one, two] = [await imgd('one'), await imgd('two')];
    parties.one = held(one);
    parties.two = held(two);
    parties.job = job(two);
    parties.tool = tool();
    parties.other = tool();
    if (storageDaemon === undefined) return;
    parties.qemu = await qemu();
    parties.peer = await qemu();
  });
  afterAll(() => {
    for (const child of children) child.kill('SIGKILL');
  });

  /** What each that comes second meets, for each pair of modes. */
  async function table(format: Format, holder: Party, comer: Party): Promise<Record<string, string>> {
    const outcome: Record<string, string> = {};
    const path = image(format);
    for (const first of MODES) {
      expect(await holder.open(path, format, first), `the holder, ${first}`).toBeUndefined();
      for (const second of MODES) {
        const refused = await comer.open(path, format, second);
        outcome[`${first}, then ${second}`] = refused ?? 'let in';
        if (refused === undefined) await comer.close();
      }
      await holder.close();
    }
    return outcome;
  }

  /** Who comes to whom, and who of QEMU's stand for the two. */
  const pairs = [
    ['one', 'two', 'qemu', 'peer'],
    ['one', 'qemu', 'peer', 'qemu'],
    ['qemu', 'one', 'qemu', 'peer'],
    ['one', 'tool', 'qemu', 'tool'],
    ['tool', 'one', 'tool', 'qemu'],
    ['one', 'job', 'qemu', 'tool'],
    ['qemu', 'job', 'qemu', 'tool'],
    ['tool', 'job', 'tool', 'other'],
  ] as const;

  it.skipIf(storageDaemon === undefined).each(['raw', 'qcow2'] as const)('%s', async (format) => {
    const known = new Map<string, Record<string, string>>();
    for (const [holder, comer, ...stands] of pairs) {
      const key = stands.join();
      const expected = known.get(key) ?? (await table(format, parties[stands[0]]!, parties[stands[1]]!));
      known.set(key, expected);
      const found = await table(format, parties[holder]!, parties[comer]!);
      expect(found, `${comer} after ${holder}`).toEqual(expected);
    }
    // Not all the same, or the table would say nothing.
    expect(new Set(Object.values(known.get('qemu,tool')!)).size).toBeGreaterThan(format === 'raw' ? 0 : 1);
  });

  it('says who holds it, of two daemons', async () => {
    const path = image('qcow2');
    expect(await parties.one!.open(path, 'qcow2', 'write')).toBeUndefined();
    const peer = await Peer.connect(join(folder, 'two.sock'));
    const answer = await peer.call('query-image-users', { filename: path });
    expect(answer.result[0].users).toEqual([
      {
        kind: 'process',
        pid: children[0]!.pid,
        command: expect.any(String),
        uses: ['consistent-read', 'write', 'resize'],
        unshared: ['write', 'resize'],
      },
    ]);
    await parties.one!.close();
    const after = await peer.call('query-image-users', { filename: path });
    expect(after.result[0].users).toEqual([]);
  });
});
