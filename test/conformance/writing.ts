/** The cells that change images: write, resize, backing, compress. As in cells.ts. */
import { copyFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Bench, Pair } from './bench.js';
import type { Cell } from './cells.js';
import { theirIo } from './programs.js';

const MiB = 2 ** 20;

function remove(pair: Pair): void {
  for (const folder of pair) rmSync(folder, { recursive: true });
}

/** A new image of data, then other data into images that are there, by each program; the reference reads what became of it. */
export const write: Cell = async (bench) => {
  const made = bench.pair();
  const converted = await bench.both(bench.converting(), made);
  if (converted.both) {
    await bench.sameState(made, bench.image, 'converted to');
    await bench.sameContent(made, bench.image, 'converted to', bench.guest);
    bench.sameFiles(made, 'converted to');
  }
  remove(made);
  return (await into(bench, await bench.byReference(), 'over an image by the reference')) || converted.theirs;
};

/** Writes over what is in an image: all of it, and its first half. */
async function into(bench: Bench, from: string | undefined, what: string): Promise<boolean> {
  let done = false;
  if (from === undefined) return done;
  const second = Math.ceil(bench.size / 2 / 512) * 512;
  const half = Buffer.from(bench.guest);
  half.set(bench.read('short.raw').subarray(0, half.byteLength), 0);
  const sources: [string, Uint8Array][] = [
    ['other.raw', bench.read('other.raw')],
    ['short.raw', half],
  ];
  for (const [source, expected] of bench.setup.thorough ? sources : sources.slice(0, 1)) {
    const pair = bench.pair(from);
    const line = ['convert', '-n', '-f', 'raw', '-O', bench.name, `../${source}`, bench.image];
    const written = await bench.both(line, pair, what);
    const told = `${what}, ${source}`;
    if (written.theirs) done = true;
    if (written.both) {
      await bench.sameState(pair, bench.image, told);
      const whole = second > bench.size && source === 'short.raw' ? undefined : expected;
      await bench.sameContent(pair, bench.image, told, whole);
      bench.sameFiles(pair, told);
    }
    remove(pair);
  }
  return done;
}

export const resize: Cell = async (bench) => {
  let done = false;
  const folder = await bench.byReference();
  if (folder === undefined) return done;
  const common = ['resize', '-f', bench.name];
  const lines = [
    [bench.image, '+1M'],
    [bench.image, '+1536'],
    [bench.image, '-1M'],
    ['--shrink', bench.image, '-2M'],
    [bench.image, String(4 * bench.size + 512)],
    ['--shrink', bench.image, '64k'],
    ['--shrink', bench.image, '0'],
    [bench.image, '+128k'],
  ];
  const pair = bench.pair(folder);
  let kept = bench.guest.byteLength;
  for (const line of lines) {
    const before = bench.found.length;
    const resized = await bench.both([...common, ...line], pair);
    if (resized.theirs) done = true;
    if (resized.both) {
      await bench.sameState(pair, bench.image, `resize ${line.join(' ')}`);
      // What was cut off does not come back. (It does in the reference, to the end of the last cluster.)
      kept = Math.min(kept, await bench.sizeOf(pair[0]));
      await bench.sameContent(pair, bench.image, `resize ${line.join(' ')}`, bench.guest.subarray(0, kept));
      bench.sameFiles(pair, `resize ${line.join(' ')}`);
    }
    if (bench.found.length > before) break;
  }
  remove(pair);
  if (!bench.setup.thorough) return done;
  for (const mode of ['off', 'metadata', 'falloc', 'full', 'nonsense']) {
    const pair = bench.pair(folder);
    const line = [...common, `--preallocation=${mode}`, bench.image, '+1M'];
    if ((await bench.both(line, pair)).both) {
      await bench.sameState(pair, bench.image, `resize --preallocation=${mode}`);
      await bench.sameContent(pair, bench.image, `resize --preallocation=${mode}`, bench.guest);
      bench.sameFiles(pair, `resize --preallocation=${mode}`);
    }
    remove(pair);
  }
  return done;
};

export const backing: Cell = async (bench) => {
  let done = false;
  for (const format of new Set([bench.name, 'raw'])) {
    const base = `base.${format}`;
    const from = format === 'raw' ? bench.folder() : await bench.byReference();
    if (from === undefined) continue;
    const pair = bench.pair(from);
    if (format === 'raw')
      for (const each of pair) copyFileSync(join(each, '../source.raw'), join(each, base));
    else for (const each of pair) renameSync(join(each, bench.image), join(each, base));
    if (await over(bench, pair, base, format)) done = true;
    remove(pair);
  }
  const pair = bench.pair();
  const line = [
    'create',
    '-f',
    bench.name,
    ...bench.options,
    '-u',
    '-b',
    'nowhere',
    '-F',
    bench.name,
    bench.image,
    '3M',
  ];
  if ((await bench.both(line, pair)).both) {
    await bench.sameState(pair, bench.image, 'create -u', 'same');
    await bench.onSame(['info', '-f', bench.name, bench.image], pair[0], 'create -u');
    await bench.onSame(['map', '-f', bench.name, bench.image], pair[0], 'create -u');
  }
  remove(pair);
  return done;
};

/** An image over `base`, which is in both folders. */
async function over(bench: Bench, pair: Pair, base: string, format: string): Promise<boolean> {
  const { image, name, options } = bench;
  const what = `over ${base}`;
  const creating = ['create', '-f', name, ...options, '-b', base, '-F', format];
  const created = await bench.both([...creating, image], pair);
  if (!created.both) {
    if (!created.theirs) await bench.both([...creating, image, String(bench.size + MiB)], pair);
    return created.theirs;
  }
  await bench.sameState(pair, image, what, 'same');

  // The reference writes: whole units, parts of some, zeros.
  const half = Math.floor(bench.size / 1024) * 512;
  const commands = [
    `write -P 17 0 64k`,
    `write -P 18 ${half} 4608`,
    `write -z ${Math.floor(half / 65536) * 32768} 192k`,
  ];
  for (const folder of pair) {
    for (const command of commands) await theirIo(['-f', name, '-c', command, image], folder);
  }
  await bench.onSame(['info', '--backing-chain', '--output=json', '-f', name, image], pair[0], what);
  await bench.onSame(['info', '-f', name, image], pair[0], what);
  await bench.onSame(['map', '--output=json', '-f', name, image], pair[0], what);
  await bench.onSame(['check', '-f', name, image], pair[0], what);
  await bench.onSame(['compare', '-f', name, '-F', 'raw', image, '../source.raw'], pair[0], what);
  const reading = ['convert', '-f', name, '-O', 'raw', image, 'out.raw'];
  if ((await bench.both(reading, pair, what)).both) {
    await bench.alike(
      ['compare', '-f', 'raw', '-F', 'raw', 'out.raw', '../source.raw'],
      pair,
      `${what}: read`,
    );
  }
  for (const folder of pair) rmSync(join(folder, 'out.raw'), { force: true });

  const steps: readonly (readonly [string, ...string[][]])[] = [
    ['written into', ['convert', '-n', '-f', 'raw', '-O', name, '../short.raw', image]],
    ['rebase -u', ['rebase', '-u', '-f', name, '-F', 'raw', '-b', '../other.raw', image]],
    ['rebase', ['rebase', '-f', name, '-F', 'raw', '-b', '../other.raw', image]],
    ['rebase to none', ['rebase', '-f', name, '-b', '', image]],
    ['commit', ['commit', '-d', '-f', name, image]],
    ['resized', ['resize', '-f', name, image, '+1M'], ['commit', '-f', name, image]],
    [
      'made larger',
      ['create', '-f', name, ...options, '-b', base, '-F', format, 'large', String(bench.size + 2 * MiB)],
    ],
    [
      'converted over',
      ['convert', '-f', 'raw', '-O', name, ...options, '-B', base, '-F', format, '../other.raw', 'large'],
    ],
  ];
  for (const [step, ...lines] of steps) {
    const copy: Pair = [bench.folder(pair[0]), bench.folder(pair[1])];
    let both = true;
    for (const line of lines) ({ both } = await bench.both(line, copy, what));
    const told = `${what}, ${step}`;
    const file = lines[0]!.includes('large') ? 'large' : image;
    if (both) {
      await bench.sameState(copy, file, told);
      await bench.sameContent(copy, file, told);
    }
    if (step.startsWith('commit')) {
      const comparing = ['compare', '-f', format, '-F', 'raw', base, '../source.raw'];
      await bench.alike(comparing, copy, told);
    }
    remove(copy);
  }
  return true;
}

export const compress: Cell = async (bench) => {
  const pair = bench.pair();
  const compressed = await bench.both(bench.converting('-c'), pair);
  if (compressed.both) {
    await bench.sameState(pair, bench.image, 'compressed');
    await bench.sameContent(pair, bench.image, 'compressed', bench.guest);
    bench.sameFiles(pair, 'compressed');
    for (const [i, folder] of pair.entries()) {
      const what = i === 0 ? 'compressed by the reference' : 'compressed by ours';
      const line = ['convert', '-f', bench.name, '-O', 'raw', bench.image, '../back.raw'];
      if ((await bench.setup.ours(line, folder)).status === 0)
        bench.holds(bench.read('back.raw'), bench.guest, what);
      else bench.note(`${what}: ours does not read it`);
      await bench.onSame(['info', '-f', bench.name, bench.image], folder, what);
      await bench.onSame(['map', '--output=json', '-f', bench.name, bench.image], folder, what);
      await bench.onSame(['check', '-f', bench.name, '--output=json', bench.image], folder, what);
      await into(bench, folder, `over what was ${what}`);
    }
  }
  remove(pair);
  return compressed.theirs;
};
