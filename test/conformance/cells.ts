/**
 * The cells that look: probe, info, read, create, check, map, measure. Each does the same with both programs; where the
 * reference refuses, ours has to refuse with the same words and code. A cell says whether the reference does it at all.
 */
import { existsSync, linkSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Bench, Pair } from './bench.js';
import { theirs } from './programs.js';

export type Cell = (bench: Bench) => Promise<boolean>;

const creatable = (bench: Bench) => typeof bench.setup.option === 'string';

/** An image without `-f`, by its name and by a name that tells nothing. */
export const probe: Cell = async (bench) => {
  const images = await bench.images();
  for (const [what, folder] of images) {
    linkSync(join(folder, bench.image), join(folder, 'nameless'));
    for (const name of bench.setup.thorough ? [bench.image, 'nameless'] : [bench.image]) {
      const told = async (program: typeof theirs) => {
        const { status, stdout, stderr } = await program(['info', '--output=json', name], folder);
        return status === 0 ? String(JSON.parse(stdout).format) : stderr.trim();
      };
      const [reference, own] = [await told(theirs), await told(bench.setup.ours)];
      if (reference !== own) bench.note(`${what}, named ${name}: theirs ${reference}, ours ${own}`);
    }
    rmSync(join(folder, 'nameless'));
  }
  return images.length > 0;
};

export const info: Cell = async (bench) => {
  const images = await bench.images();
  for (const [what, folder] of images) {
    await bench.onSame(['info', '-f', bench.name, bench.image], folder, what);
    await bench.onSame(['info', '-f', bench.name, '--output=json', bench.image], folder, what);
    if (bench.setup.thorough) await bench.onSame(['info', '--backing-chain', bench.image], folder, what);
  }
  return images.length > 0;
};

/** What the reference wrote, we read as it does. */
export const read: Cell = async (bench) => {
  const folder = await bench.byReference();
  if (folder === undefined) return false;
  for (const sparse of bench.setup.thorough ? ['4k', '0'] : ['4k']) {
    const pair: Pair = [folder, folder];
    const line = (name: string) => ['-f', bench.name, '-O', 'raw', '-S', sparse, bench.image, name];
    const reference = await theirs(['convert', ...line('../theirs.raw')], pair[0]);
    const own = await bench.setup.ours(['convert', ...line('../ours.raw')], pair[1]);
    const told = (text: string) => text.replace('ours.raw', 'theirs.raw');
    if (reference.status !== own.status || reference.stderr !== told(own.stderr)) {
      if (!(bench.more && reference.status !== 0 && own.status === 0))
        bench.note(
          `convert to raw: theirs exit ${reference.status} ${reference.stderr.trim()}; ours exit ${own.status} ${own.stderr.trim()}`,
        );
    }
    if (own.status === 0) {
      const content = bench.read('ours.raw');
      if (reference.status === 0)
        bench.sameBytes(bench.read('theirs.raw'), content, 'content by theirs and by ours');
      bench.holds(content, bench.guest, 'read');
    }
    for (const name of ['theirs.raw', 'ours.raw']) rmSync(join(bench.setup.folder, name), { force: true });
  }
  await bench.onSame(['compare', '-f', bench.name, '-F', 'raw', bench.image, '../source.raw'], folder);
  if (bench.setup.thorough)
    await bench.onSame(['compare', '-f', 'raw', '-F', bench.name, '../other.raw', bench.image], folder);
  return true;
};

/** An empty image, which the reference finds to be as its own. */
export const create: Cell = async (bench) => {
  let done = false;
  // Formats round sizes; the smallest ones have limits of their own.
  for (const size of new Set(bench.setup.thorough ? [bench.size, 1000, 0] : [bench.size])) {
    const pair = bench.pair();
    const options = creatable(bench) ? bench.options : [];
    const created = await bench.both(
      ['create', '-f', bench.name, ...options, bench.image, String(size)],
      pair,
    );
    const [made, own] = pair.map((folder) => existsSync(join(folder, bench.image)));
    if (made !== own && !(bench.more && !created.theirs))
      bench.note(`create of ${size} bytes: left a file: theirs ${made}, ours ${own}`);
    if (created.theirs) done = true;
    if (created.both) {
      await bench.sameState(pair, bench.image, `create of ${size} bytes`, size === 0 ? 'any' : 'same');
      await bench.sameContent(pair, bench.image, `create of ${size} bytes`, new Uint8Array(size));
      bench.sameFiles(pair, `create of ${size} bytes`);
      await bench.onSame(['info', '-f', bench.name, bench.image], pair[0], `created, ${size} bytes`);
      const map = ['map', '-f', bench.name, '--output=json', bench.image];
      // Without extents the reference opens it, and stops at an assertion for all else that is asked.
      if (size > 0) await bench.onSame(map, pair[0], `created, ${size} bytes`);
    }
    for (const folder of pair) rmSync(folder, { recursive: true });
  }
  if (!bench.setup.thorough) return done;
  const pair = bench.pair();
  const creating = ['create', '-f', bench.name];
  await bench.both([...creating, ...bench.options, bench.image], pair, 'no size');
  await bench.both([...creating, '-o', 'nonsense=1', bench.image, '1M'], pair);
  await bench.both([...creating, '-o', 'help'], pair);
  for (const folder of pair) rmSync(folder, { recursive: true });
  return done;
};

export const check: Cell = async (bench) => {
  let done = false;
  for (const [what, folder] of await bench.images()) {
    for (const output of ['human', 'json']) {
      const args = ['check', '-f', bench.name, `--output=${output}`, bench.image];
      const { status } = await bench.onSame(args, folder, what);
      if (status !== 63) done = true;
    }
    for (const repair of bench.setup.thorough ? ['leaks', 'all'] : ['all']) {
      const pair = bench.pair(folder);
      await bench.both(['check', '-f', bench.name, '-r', repair, bench.image], pair, what);
      await bench.sameContent(pair, bench.image, `${what}: check -r ${repair}`, bench.guest);
      for (const each of pair) rmSync(each, { recursive: true });
    }
  }
  return done;
};

export const map: Cell = async (bench) => {
  const images = await bench.images();
  const third = Math.floor(bench.size / 3);
  for (const [what, folder] of images) {
    const common = ['map', '-f', bench.name];
    await bench.onSame([...common, '--output=json', bench.image], folder, what);
    await bench.onSame([...common, bench.image], folder, what);
    if (!bench.setup.thorough) continue;
    const part = ['-s', String(third), '-l', String(third + 100)];
    await bench.onSame([...common, '--output=json', ...part, bench.image], folder, what);
  }
  return images.length > 0;
};

export const measure: Cell = async (bench) => {
  let done = false;
  const folder = bench.folder();
  const options = creatable(bench) ? bench.options : [];
  const common = ['measure', '-O', bench.name, ...options];
  const measured = await bench.onSame([...common, '--size', String(bench.size)], folder);
  if (measured.status === 0) done = true;
  const json = [...common, '--output=json'];
  for (const size of bench.setup.thorough ? [bench.size, 0, 1000, 2 ** 42] : [bench.size])
    await bench.onSame([...json, '--size', String(size)], folder);
  await bench.onSame([...json, '-f', 'raw', '../source.raw'], folder);
  for (const [what, from] of await bench.images()) {
    for (const target of new Set([bench.name, 'raw'])) {
      const args = ['measure', '--output=json', '-O', target, '-f', bench.name, bench.image];
      await bench.onSame(args, from, what);
    }
  }
  rmSync(folder, { recursive: true });
  return done;
};
