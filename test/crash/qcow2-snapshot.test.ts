/**
 * Internal snapshots of qcow2 images created, applied and deleted: whatever moment the power fails at, the image opens, what
 * the guest sees is what it was or what was to be, and so is the list of snapshots.
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

interface Change {
  readonly options?: OptionValues;
  before(image: ImageNode): Promise<void>;
  act(image: ImageNode): Promise<void>;
  /** Corruptions that may be seen on the way: copied flags that are too careful, where nothing can mark the image dirty. */
  readonly transient?: number;
}

const write = (image: ImageNode, at: number, length: number, salt: number) =>
  image.write(at, pattern(at, length, salt));

async function take(image: ImageNode, name: string): Promise<void> {
  const when = { vmStateSize: 0, dateSec: 1, dateNsec: 2, vmClockNsec: 0n, icount: 0n };
  await image.format.snapshots!.edit!.create({ name, ...when });
}

const named = (image: ImageNode, name: string) =>
  image.format.snapshots!.list().find((each) => each.name === name)!;

/** What the guest and each snapshot hold, as one text. */
async function sight(image: ImageNode): Promise<string> {
  const hash = async (node: ImageNode) => {
    const bytes = new Uint8Array(node.size);
    await node.read(0, bytes);
    let sum = 0;
    for (const byte of bytes) sum = (Math.imul(sum, 31) + byte) | 0;
    return `${node.size}:${sum}`;
  };
  const parts = [`guest ${await hash(image)}`];
  for (const snapshot of image.format.snapshots!.list()) {
    const view = image.withFormat(await image.format.snapshots!.view(snapshot));
    parts.push(`${snapshot.id} ${snapshot.name} ${await hash(view)}`);
  }
  return parts.join(', ');
}

async function survives({ options, before, act, transient = 0 }: Change): Promise<void> {
  const image = new PagedStorage(IMAGE);
  await createOn({ image }, 96 * K, { cluster_size: 512, ...options });
  const first = await openOn({ image }, { writable: true });
  await before(first);
  await first.close();
  const start = new Map([[IMAGE, image.fork()]]);
  const look = async (storage: PagedStorage) => {
    const node = await openOn({ image: storage.fork() }, { writable: true });
    const seen = await sight(node);
    await node.close();
    return seen;
  };
  const old = await look(image);
  const log = new CrashLog();
  const node = await openOn({ image: new RecordingStorage(image, log, IMAGE) }, { writable: true });
  await act(node);
  await node.close();
  const last = await look(image);
  const { states, violations } = await verifyCrashes(
    log,
    start,
    {
      async open(state) {
        const seen = await look(state.files.get(IMAGE)!);
        if (seen !== old && seen !== last) throw new Error(`${seen} is neither ${old} nor ${last}`);
        return openCrashed(state.files, undefined);
      },
      corruptions: () => transient,
    },
    { seed: 1, samples: sampleCount(150), torn: true },
  );
  expect(violations).toEqual([]);
  expect(states).toBeGreaterThan(20);
  const opened = await openCrashed(new Map([[IMAGE, image]]), undefined);
  const { result, lines } = await opened.check!();
  expect(lines).toEqual([]);
  expect(result).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
}

const fill = async (image: ImageNode) => {
  await write(image, 0, 20 * K, 1);
  await write(image, 50 * K, 7 * K, 2);
};
const twice = async (image: ImageNode) => {
  await fill(image);
  await take(image, 'one');
  await write(image, 10 * K, 30 * K, 3);
  await take(image, 'two');
  await write(image, 48 * K, 4 * K, 4);
};
const packed = async (image: ImageNode) => {
  const { pack } = image.format;
  for (let at = 0; at < 8; at++) {
    const bytes = await pack!.compress(pattern(at * 4096, 4096, at));
    await image.writePacked(at * 4096, bytes!);
  }
};

describe('qcow2 snapshots survive crashes', () => {
  const cases: Readonly<Record<string, Change>> = {
    'the first one': { before: fill, act: (image) => take(image, 'one') },
    'of an empty image': { before: async () => {}, act: (image) => take(image, 'one') },
    'a further one': { before: twice, act: (image) => take(image, 'three') },
    'of compressed clusters': {
      options: { cluster_size: 4096 },
      before: packed,
      act: (image) => take(image, 'one'),
    },
    'with subclusters': {
      options: { cluster_size: 16384, extended_l2: true },
      before: fill,
      act: (image) => take(image, 'one'),
    },
    'in version 2': {
      options: { compat: '0.10' },
      before: fill,
      act: (image) => take(image, 'one'),
      transient: 500,
    },
    'beyond what refcounts hold': {
      options: { refcount_bits: 1 },
      before: fill,
      act: async (image) => {
        await expect(take(image, 'one')).rejects.toThrow('Invalid argument');
        // what was allocated on the way is left behind
        await image.format.checker!.check({ repair: { leaks: true, errors: false }, report: () => {} });
      },
    },
    applied: { before: twice, act: (image) => image.format.snapshots!.edit!.apply(named(image, 'one')) },
    'applied in version 2': {
      options: { compat: '0.10' },
      before: twice,
      act: (image) => image.format.snapshots!.edit!.apply(named(image, 'one')),
    },
    'applied to another size': {
      before: async (image) => {
        await twice(image);
        await image.format.resize!(200 * K, { preallocation: 'off' });
        await write(image, 150 * K, 9 * K, 5);
      },
      act: (image) => image.format.snapshots!.edit!.apply(named(image, 'two')),
    },
    deleted: { before: twice, act: (image) => image.format.snapshots!.edit!.delete(named(image, 'one')) },
    'the last one deleted': {
      before: async (image) => {
        await fill(image);
        await take(image, 'one');
        await write(image, 10 * K, 30 * K, 3);
      },
      act: (image) => image.format.snapshots!.edit!.delete(named(image, 'one')),
    },
    'deleted in version 2': {
      options: { compat: '0.10' },
      before: twice,
      act: (image) => image.format.snapshots!.edit!.delete(named(image, 'two')),
      transient: 500,
    },
  };
  for (const [name, change] of Object.entries(cases)) it(name, () => survives(change));
});

describe('qcow2 resize survives crashes', () => {
  const resize = (size: number, preallocation: 'off' | 'metadata' = 'off'): Change => ({
    before: fill,
    act: (image) => image.format.resize!(size, { preallocation }),
  });
  it('growing', () => survives(resize(900 * K)));
  it('growing with preallocation', () => survives(resize(300 * K, 'metadata')));
  it('shrinking', () => survives(resize(9 * K)));
  it('shrinking with a snapshot', () => survives({ ...resize(9 * K), before: twice }));
});
