/**
 * Persistent bitmaps of qcow2 images: whatever moment the power fails at, the image opens, and no bitmap that claims to be
 * consistent says less than it should.
 */
import { describe, expect, it } from 'vitest';
import type { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { createOn, IMAGE, openCrashed, openOn } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { pattern } from './scenario.js';

const K = 1024;

const write = (image: ImageNode, at: number, length: number, salt: number) =>
  image.write(at, pattern(at, length, salt));

/** All bitmaps that can be used, with what they say. */
async function sight(image: ImageNode): Promise<string[]> {
  const store = image.format.bitmapStore!;
  const found: string[] = [];
  for (const { name, flags, granularity } of store.list()) {
    if (flags.includes('in-use')) continue;
    const runs = [...(await store.content(name)).runs()].map(([at, end]) => `${at}-${end}`);
    found.push(`${name} ${flags.join()} ${granularity}: ${runs.join(' ')}`);
  }
  return found;
}

async function survives(
  before: (image: ImageNode) => Promise<void>,
  act: (image: ImageNode) => Promise<void>,
  options: OptionValues = {},
): Promise<void> {
  const image = new PagedStorage(IMAGE);
  await createOn({ image }, 256 * K, { cluster_size: 512, ...options });
  const first = await openOn({ image }, { writable: true });
  await before(first);
  await first.close();
  const look = async (storage: PagedStorage) => {
    const node = await openOn({ image: storage.fork() }, { writable: false });
    const seen = await sight(node);
    await node.close();
    return seen;
  };
  const start = new Map([[IMAGE, image.fork()]]);
  const old = await look(image);
  const log = new CrashLog();
  const node = await openOn({ image: new RecordingStorage(image, log, IMAGE) }, { writable: true });
  await act(node);
  await node.close();
  const last = await look(image);
  const { violations } = await verifyCrashes(
    log,
    start,
    {
      async open(state) {
        const seen = await look(state.files.get(IMAGE)!);
        const among = (all: readonly string[]) => seen.every((each) => all.includes(each));
        if (!among(old) && !among(last)) throw new Error(`${seen.join('; ')} was never so`);
        return openCrashed(state.files, undefined);
      },
    },
    { seed: 1, samples: sampleCount(150), torn: true },
  );
  expect(violations).toEqual([]);
  const { result, lines } = await (await openCrashed(new Map([[IMAGE, image]]), undefined)).check!();
  expect(lines).toEqual([]);
  expect(result).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
}

const two = async (image: ImageNode) => {
  const store = image.format.bitmapStore!;
  await store.add('a', 512);
  await store.add('b');
  await write(image, 10 * K, 5 * K, 1);
  await store.setEnabled('b', false);
};

describe('qcow2 bitmaps survive crashes', () => {
  const store = (image: ImageNode) => image.format.bitmapStore!;
  it('the first one', () =>
    survives(
      async () => {},
      (image) => store(image).add('a'),
    ));
  it('the first one in a header of many sectors', () =>
    survives(
      async () => {},
      (image) => store(image).add('a'),
      { cluster_size: 8192 },
    ));
  it('a further one', () => survives(two, (image) => store(image).add('c', 4096)));
  it('one removed', () => survives(two, (image) => store(image).remove('a')));
  it('the last ones removed', () =>
    survives(two, async (image) => {
      await store(image).remove('a');
      await store(image).remove('b');
    }));
  it('cleared, enabled, merged', () =>
    survives(two, async (image) => {
      await store(image).merge('b', await store(image).content('a'));
      await store(image).clear('a');
      await store(image).setEnabled('b', true);
    }));
  it('guest writes', () =>
    survives(two, async (image) => {
      await write(image, 100 * K, 3 * K, 2);
      await image.flush();
      await image.zero({ at: 11 * K, length: K });
    }));
  it('another size', () => survives(two, (image) => image.format.resize!(300 * K, { preallocation: 'off' })));
  it('a smaller size', () =>
    survives(two, (image) => image.format.resize!(12 * K, { preallocation: 'off' })));
});

describe('qcow2 bitmaps record', () => {
  it('writes, zeroes, discards and sizes', async () => {
    const image = new PagedStorage(IMAGE);
    await createOn({ image }, 256 * K, { cluster_size: 512 });
    let node = await openOn({ image }, { writable: true });
    await node.format.bitmapStore!.add('a', 1024);
    await node.close();
    node = await openOn({ image }, { writable: true });
    await write(node, 1000, 100, 1);
    await node.zero({ at: 8 * K, length: 2 * K });
    await node.discard({ at: 20 * K, length: K });
    await node.format.resize!(300 * K, { preallocation: 'off' });
    await write(node, 299 * K, K, 1);
    await node.close();
    node = await openOn({ image }, { writable: false });
    expect(await sight(node)).toEqual(['a auto 1024: 0-2048 8192-10240 20480-21504 306176-307200']);
    await node.close();
  });
});
