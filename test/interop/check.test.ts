/** Check and repair of damaged qcow2 images against the reference: the same findings, in the same words and order. */
import { copyFileSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import type { CheckResult } from '../../src/engine/node/driver.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { seeded } from '../crash/random.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { openImage } from '../unit/qcow2-support.js';
import { type CheckCase, checkCases, defaultIo, ImagePatch, variedImages } from './check-cases.js';

interface Outcome {
  /** What stderr has, without what the open says. */
  readonly lines: readonly string[];
  /** QAPI's result of the last pass; absent where the check did not finish. */
  readonly result?: Readonly<Record<string, number>>;
  readonly failure?: string;
}

type Repair = 'none' | 'leaks' | 'all';

function make(folder: string, test: CheckCase): string {
  const image = join(folder, 'image.qcow2');
  const data = join(folder, 'image.data');
  rmSync(image, { force: true });
  rmSync(data, { force: true });
  const must = (program: string, args: readonly string[]): void => {
    const { status, stderr, stdout } = run(program, args);
    if (status !== 0) throw new Error(`${args.join(' ')}: ${stderr}${stdout}`);
  };
  const io = (commands: readonly string[]): void =>
    must(reference.qemuIo!, [...commands.flatMap((command) => ['-c', command]), image]);
  const options = (test.options ?? 'cluster_size=512').replace('DATA', data);
  must(reference.qemuImg!, ['create', '-q', '-f', 'qcow2', '-o', options, image, test.size ?? '64k']);
  io(test.io ?? defaultIo);
  for (const command of test.commands ?? []) {
    must(
      reference.qemuImg!,
      command.map((word) => (word === 'IMAGE' ? image : word)),
    );
  }
  if (test.ioAfter !== undefined) io(test.ioAfter);
  const patch = new ImagePatch(image);
  test.damage?.(patch);
  patch.close();
  return image;
}

function theirs(image: string, repair: Repair): Outcome {
  const args = repair === 'none' ? [] : ['-r', repair];
  const { stdout, stderr } = run(reference.qemuImg!, ['check', '--output=json', ...args, image]);
  const lines = stderr.split('\n').filter((line) => line !== '' && line !== 'qemu-img: Check failed');
  const failure = lines.find((line) => /^qemu-img: (Check failed|Could not open)/.test(line));
  if (failure !== undefined || stdout === '') {
    return {
      lines: lines.filter((line) => line !== failure),
      failure: failure?.replace('qemu-img: ', '') ?? '?',
    };
  }
  const result = JSON.parse(stdout) as Record<string, number>;
  delete result.filename;
  delete result.format;
  return { lines, result };
}

/** As qemu-img does it: after a repair the image is checked once more, and that result is shown. */
async function ours(storage: MemoryStorage, repair: Repair): Promise<Outcome> {
  const lines: string[] = [];
  const report = (line: string): void => {
    lines.push(line);
  };
  const want = { leaks: repair !== 'none', errors: repair === 'all' };
  try {
    // through the driver, as the operation does it: what it caches must not get in the way
    const { node, image } = await openImage(
      { file: storage, dataFile: new MemoryStorage(1 << 20, { filename: 'data' }) },
      { writable: repair !== 'none', forCheck: true },
    );
    const facet = node.checker;
    let result = await facet.check({ repair: want, report });
    if (result.leaksFixed > 0 || result.corruptionsFixed > 0) {
      const { leaksFixed, corruptionsFixed } = result;
      result = await facet.check({ repair: { leaks: false, errors: false }, report });
      result.leaksFixed = leaksFixed;
      result.corruptionsFixed = corruptionsFixed;
    }
    await image.close();
    return { lines, result: inQapi(result) };
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    return { lines, failure: error.message };
  }
}

function inQapi(result: CheckResult): Record<string, number> {
  const names = {
    'check-errors': result.checkErrors,
    corruptions: result.corruptions,
    leaks: result.leaks,
    'corruptions-fixed': result.corruptionsFixed,
    'leaks-fixed': result.leaksFixed,
    'image-end-offset': result.imageEndOffset ?? 0,
    'total-clusters': result.totalClusters ?? 0,
    'allocated-clusters': result.allocatedClusters ?? 0,
    'fragmented-clusters': result.fragmentedClusters ?? 0,
    'compressed-clusters': result.compressedClusters ?? 0,
  };
  return Object.fromEntries(
    Object.entries(names).filter(([name, count]) => count !== 0 || name === 'check-errors'),
  );
}

/** A few damaged words, most of them in what the header and the tables name, all by the seed. */
function scramble(image: ImagePatch, random: () => number): string {
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;
  const tables = [image.l1(), image.l2(), image.reftable(), Number(image.u64(image.reftable()))];
  if (image.u32(60) > 0) tables.push(Number(image.u64(image.snapshots)));
  const done: string[] = [];
  for (let count = 1 + Math.floor(random() * 3); count > 0; count--) {
    const at = pick(tables) + 8 * Math.floor(random() * random() * (image.cluster / 8));
    const here = image.u64(at);
    const there = image.u64(pick(tables) + 8 * Math.floor(random() * 8));
    const value = pick([
      0n,
      there,
      here ^ (1n << BigInt(Math.floor(random() * 64))),
      here ^ (1n << BigInt(9 + Math.floor(random() * 12))),
      (1n << 63n) | BigInt(Math.floor(random() * image.size)),
      (1n << 63n) | BigInt(Math.floor((random() * image.size) / image.cluster) * image.cluster),
    ]);
    image.setU64(at, value & 0xffffffffffffffffn);
    done.push(`0x${at.toString(16)}: ${here.toString(16)} -> ${value.toString(16)}`);
  }
  return done.join(', ');
}

/** Where the reference gives up or harms the image and we do better; only that the result is sound is held. */
const better = new Set([
  'refcount table entry unaligned',
  'refcount table entry with reserved bits',
  'two snapshots, the count too large',
]);

describeInterop('check against the reference', () => {
  const folder = tempDir();

  for (const test of checkCases) {
    it(test.name, { timeout: 120_000 }, async () => {
      const image = make(folder, test);
      const damaged = readFileSync(image);
      const expected = theirs(image, 'none');
      // what does not open is not the checker's
      if (expected.failure?.startsWith('Could not open') === true) return;
      const warned =
        expected.lines.filter((line) => /^(qemu-img: warning|Some clusters may be)/.test(line)).length > 0;
      const found = await ours(new MemoryStorage(damaged), 'none');
      if (!warned) expect(found).toEqual(expected);

      for (const repair of ['leaks', 'all'] as const) {
        const copy = join(folder, 'copy.qcow2');
        copyFileSync(image, copy);
        const storage = new MemoryStorage(damaged);
        const mine = await ours(storage, repair);
        const result = join(folder, 'repaired.qcow2');
        if (!(repair === 'all' && better.has(test.name)) && !warned) {
          const wanted = theirs(copy, repair);
          // a repaired bitmap directory is written back when the reference closes the image
          const closing = wanted.lines.filter((line) => !line.startsWith('qcow2_free_clusters failed'));
          expect(mine).toEqual({ ...wanted, lines: closing });
          // the reference clears the dirty bit whenever it closes the image, be it repaired or not
          if (mine.failure === undefined) expect(marks(storage.bytes())).toEqual(marks(readFileSync(copy)));
        }
        // the reference sees the same state in what we have repaired
        writeFileSync(result, storage.bytes());
        const again = theirs(result, 'none');
        const own = await ours(storage, 'none');
        if (!warned) expect(own).toEqual(again);
        if (repair === 'all' && better.has(test.name)) expect(again.result?.corruptions).toBeUndefined();
      }
    });
  }
});

describeInterop('check of images damaged at random', () => {
  const folder = tempDir();
  const rounds = Number(process.env.IMGD_CHECK_ROUNDS ?? '12');

  for (const base of variedImages) {
    it(base.name, { timeout: 600_000 }, async () => {
      const image = make(folder, base);
      const sound = readFileSync(image);
      const copy = join(folder, 'copy.qcow2');
      for (let seed = 1; seed <= rounds; seed++) {
        writeFileSync(copy, sound);
        const patch = new ImagePatch(copy);
        const damage = `seed ${seed}: ${scramble(patch, seeded(seed))}`;
        patch.close();
        const damaged = readFileSync(copy);
        const expected = theirs(copy, 'none');
        if (expected.failure?.startsWith('Could not open') === true) continue;
        const found = await ours(new MemoryStorage(damaged), 'none');
        expect({ damage, ...found }).toEqual({ damage, ...expected });

        const storage = new MemoryStorage(damaged);
        const repaired = await ours(storage, 'all');
        const wanted = theirs(copy, 'all');
        // A refcount block far behind the end makes the file long. The reference goes so far that the table it writes for
        // that is larger than it opens.
        if (Math.max(storage.size, statSync(copy).size) > 1 << 26) continue;
        // where the reference gives up we may go on
        if (wanted.failure === undefined) expect({ damage, ...repaired }).toEqual({ damage, ...wanted });
        writeFileSync(copy, storage.bytes());
        expect({ damage, ...(await ours(storage, 'none')) }).toEqual({ damage, ...theirs(copy, 'none') });
      }
    });
  }
});

function marks(bytes: Uint8Array): string {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  return view.readUInt32BE(4) >= 3 ? view.readBigUInt64BE(72).toString(16) : '';
}
