/**
 * Rebasing and emptying qcow2 images: at every instant the image opens, is sound and reads as before. The two backing files
 * differ, so that a name that is changed before the copies are durable shows.
 */
import { describe, expect, it } from 'vitest';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { commitInto } from '../../src/engine/operations/commit.js';
import { rebaseOnto } from '../../src/engine/operations/rebase.js';
import { quietContext } from '../support/operations.js';
import { GuestHistory, type OpenedImage, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { addSnapshot, createOn, type Files, IMAGE, isDirty, openCrashed, openOn } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { pattern } from './scenario.js';

const K = 1024;
const SIZE = 256 * K;

const context = quietContext();

/** The old backing file, whose end the image reaches over, and one that differs from it here and there, and beyond. */
function backings(): { readonly old: PagedStorage; readonly fresh: PagedStorage } {
  const bytes = pattern(0, 200 * K, 90);
  bytes.fill(0, 96 * K, 112 * K);
  const other = pattern(0, SIZE, 91);
  other.set(bytes.subarray(0, 64 * K));
  return { old: new PagedStorage('backing', bytes), fresh: new PagedStorage('backing', other) };
}

interface Case {
  readonly options?: OptionValues;
  readonly snapshot?: boolean;
  /** All of the image is allocated: with small clusters more than one refcount block counts. */
  readonly full?: boolean;
  readonly samples?: number;
}

async function prepare(test: Case, backing: PagedStorage): Promise<{ files: Files; image: PagedStorage }> {
  const image = new PagedStorage(IMAGE);
  const files: Files = { image, backing };
  await createOn(files, SIZE, { cluster_size: 4096, ...test.options });
  const node = await openOn(files, { writable: true });
  if (test.full === true) await node.write(0, pattern(0, SIZE, 4));
  await node.write(20 * K, pattern(20 * K, 30 * K, 1));
  await node.write(150 * K, pattern(150 * K, 8 * K, 2));
  await node.zero({ at: 164 * K, length: 8 * K });
  const { pack } = node.format;
  const stored = await pack!.compress(pattern(128 * K, pack!.unit, 3));
  await node.writePacked(128 * K, stored!);
  await node.close();
  if (test.snapshot === true) addSnapshot(image, 'one');
  return { files, image };
}

async function contentOf(image: { size: number; read(at: number, into: Uint8Array): Promise<void> }) {
  const bytes = new Uint8Array(image.size);
  await image.read(0, bytes);
  return bytes;
}

/** What the header says in a crash state. */
async function backingName(image: PagedStorage): Promise<string | undefined> {
  const node = await openOn({ image: image.fork() }, { writable: false });
  const name = node.format.backing?.filename;
  await node.close();
  return name;
}

async function rebaseSurvives(
  test: Case & { readonly name?: string; readonly compress?: boolean },
): Promise<void> {
  const { old, fresh } = backings();
  const { image } = await prepare(test, old);
  const start = new Map([[IMAGE, image.fork()]]);
  const log = new CrashLog();
  const recorded: Files = { image: new RecordingStorage(image, log, IMAGE), backing: old };
  const node = await openOn(recorded, { writable: true });
  const content = await contentOf(node);
  const to =
    test.name === undefined
      ? undefined
      : (await openOn({ image, backing: fresh }, { writable: false })).backing;
  const backing = test.name === undefined ? undefined : { filename: test.name, format: 'qcow2' };
  await rebaseOnto(node, to, backing, test.compress ?? false, context);
  await node.close();

  const seen = new Set<string | undefined>();
  const { violations } = await verifyCrashes(
    log,
    start,
    {
      async open(state): Promise<OpenedImage> {
        const name = await backingName(state.files.get(IMAGE)!);
        seen.add(name);
        if (name !== 'backing' && name !== test.name) throw new Error(`backing file '${name}'`);
        return openCrashed(
          state.files,
          name === 'backing' ? old : test.name === undefined ? undefined : fresh,
        );
      },
      history: new GuestHistory(log, content),
    },
    { seed: 3, samples: sampleCount(test.samples ?? 200), torn: true },
  );
  expect(violations).toEqual([]);
  expect(seen).toContain(test.name);
}

describe('a crash while rebasing', () => {
  const cases: readonly (readonly [string, Parameters<typeof rebaseSurvives>[0]])[] = [
    ['onto nothing', {}],
    ['onto another file', { name: 'new' }],
    ['with a name as long as can be', { name: `/${'n'.repeat(1022)}` }],
    ['compressed', { name: 'new', compress: true }],
    ['version 2', { name: `/${'n'.repeat(600)}`, options: { compat: '0.10' } }],
    ['clusters of 64 KiB', { name: `/${'n'.repeat(600)}`, options: { cluster_size: 65536 } }],
    ['clusters of 512 bytes', { name: 'a-longer-name', options: { cluster_size: 512 } }],
    ['subclusters', { name: 'new', options: { cluster_size: 16384, extended_l2: true } }],
    ['a snapshot', { name: 'new', snapshot: true }],
  ];
  for (const [title, test] of cases) it(title, () => rebaseSurvives(test), 120_000);
});

async function emptySurvives(test: Case): Promise<void> {
  const old = new PagedStorage('backing', pattern(0, SIZE, 90));
  const { files, image } = await prepare(test, old);
  // Committed: the backing file has what the image has.
  const before = await openOn(files, { writable: false });
  const content = await contentOf(before);
  await before.close();
  old.put(0, content);
  const start = new Map([[IMAGE, image.fork()]]);
  const log = new CrashLog();
  const node = await openOn(
    { image: new RecordingStorage(image, log, IMAGE), backing: old },
    { writable: true },
  );
  await node.format.makeEmpty!();
  const extent = await node.format.map({ at: 0, length: SIZE });
  expect(extent).toEqual({ kind: 'backing', length: SIZE });
  // It goes on being an image.
  await node.write(0, content.subarray(0, 64 * K));
  await node.close();
  const { violations } = await verifyCrashes(
    log,
    start,
    {
      open: (state) => openCrashed(state.files, old),
      history: new GuestHistory(log, content),
    },
    { seed: 4, samples: sampleCount(test.samples ?? 200), torn: true },
  );
  expect(violations).toEqual([]);
  const after = await openCrashed(new Map([[IMAGE, image]]), old);
  const { result, lines } = await after.check!();
  await after.close();
  expect([result.leaks, result.corruptions, lines]).toEqual([0, 0, []]);
}

describe('a crash while emptying', () => {
  const cases: readonly (readonly [string, Case])[] = [
    ['plain', {}],
    ['version 2', { options: { compat: '0.10' } }],
    ['clusters of 512 bytes, a table that has grown', { options: { cluster_size: 512 }, full: true }],
    ['one-bit refcounts', { options: { refcount_bits: 1, cluster_size: 512 } }],
    ['subclusters', { options: { cluster_size: 16384, extended_l2: true } }],
    ['a snapshot', { snapshot: true, options: { cluster_size: 4096 } }],
  ];
  for (const [title, test] of cases) it(title, () => emptySurvives(test), 120_000);
});

describe('a crash while committing', () => {
  it('leaves the image as it reads', async () => {
    const { old } = backings();
    const { files, image } = await prepare({}, old);
    const below = new PagedStorage('below');
    await createOn({ image: below }, 100 * K, { cluster_size: 4096 });
    const deep = await openOn({ image: below }, { writable: true });
    await deep.write(0, pattern(0, 100 * K, 5));
    await deep.close();

    const log = new CrashLog();
    const start = new Map([
      [IMAGE, image.fork()],
      ['below', below.fork()],
    ]);
    const top = await openOn(
      { ...files, image: new RecordingStorage(image, log, IMAGE) },
      { writable: true },
    );
    const base = await openOn({ image: new RecordingStorage(below, log, 'below') }, { writable: true });
    top.backing = base;
    const content = await contentOf(top);
    expect(await commitInto(top, base, true, context)).toMatchObject({ emptied: true });
    expect(Buffer.compare(await contentOf(top), content)).toBe(0);
    expect(Buffer.compare(await contentOf(base), content)).toBe(0);
    await top.close();
    const { violations } = await verifyCrashes(
      log,
      start,
      {
        async open(state): Promise<OpenedImage> {
          const lower = await openOn({ image: state.files.get('below')! }, { writable: false });
          const top = state.files.get(IMAGE)!;
          const upper = await openOn({ image: top }, { writable: isDirty(top) });
          upper.backing = lower;
          return {
            size: upper.size,
            read: async (at, length) => {
              const into = new Uint8Array(length);
              await upper.read(at, into);
              return into;
            },
            check: async () => {
              const lines: string[] = [];
              const how = {
                repair: { leaks: false, errors: false },
                report: (line: string) => lines.push(line),
              };
              const [one, two] = [
                await lower.format.checker!.check(how),
                await upper.format.checker!.check(how),
              ];
              return { result: { ...one, corruptions: one.corruptions + two.corruptions }, lines };
            },
            close: () => upper.close(),
          };
        },
        history: new GuestHistory(log, content),
      },
      { seed: 5, samples: sampleCount(300), torn: true },
    );
    expect(violations).toEqual([]);
  }, 120_000);
});
