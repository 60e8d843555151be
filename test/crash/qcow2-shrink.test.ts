/**
 * Shrinking a qcow2 image: a crash leaves the old size or the new one, no corruption, all of the content below the new
 * size, and above it nothing that was not there before.
 */
import { describe, expect, it } from 'vitest';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { GuestHistory, type OpenedImage, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { addSnapshot, createOn, DATA, type Files, IMAGE, openCrashed, openOn } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { Guest, pattern } from './scenario.js';

const K = 1024;
const SECTOR = 512;
const OLD = 256 * K;

interface Shrinking {
  readonly to: number;
  readonly options?: OptionValues;
  readonly backing?: Uint8Array;
  before(guest: Guest): Promise<void>;
  readonly snapshot?: boolean;
  /** Between opening and shrinking, not flushed. */
  act?(guest: Guest): Promise<void>;
  /** On the smaller image. */
  after?(guest: Guest): Promise<void>;
}

async function shrinkSurvives(test: Shrinking): Promise<void> {
  const { to, options = {} } = test;
  const image = new PagedStorage(IMAGE);
  const data = options.data_file === undefined ? undefined : new PagedStorage(DATA);
  const backing = test.backing === undefined ? undefined : new PagedStorage('backing', test.backing);
  const plain: Files = { image, data, backing };
  await createOn(plain, OLD, { cluster_size: 512, ...options });
  const first = await openOn(plain, { writable: true });
  await test.before(new Guest(first, new GuestHistory(new CrashLog(), new Uint8Array(OLD))));
  const content = new Uint8Array(OLD);
  await first.read(0, content);
  await first.close();
  if (test.snapshot === true) addSnapshot(image, 'one');

  const log = new CrashLog();
  const start = new Map([[IMAGE, image.fork()]]);
  if (data !== undefined) start.set(DATA, data.fork());
  const node = await openOn(
    {
      image: new RecordingStorage(image, log, IMAGE),
      data: data === undefined ? undefined : new RecordingStorage(data, log, DATA),
      backing,
    },
    { writable: true },
  );
  // what is below the new size is followed sector by sector
  const history = new GuestHistory(log, content.subarray(0, to));
  const guest = new Guest(node, history);
  await test.act?.(guest);
  await node.format.resize!(to, { preallocation: 'off' });
  const shrunk = log.tick();
  await test.after?.(guest);
  await guest.flush();
  await history.flush(() => node.close());

  const { violations, states } = await verifyCrashes(
    log,
    start,
    {
      history,
      async open(state): Promise<OpenedImage> {
        const opened = await openCrashed(state.files, backing);
        try {
          await checkAbove(opened, state.time >= shrunk);
        } catch (error) {
          await opened.close();
          throw error;
        }
        return { ...opened, size: to };
      },
    },
    { seed: 1, samples: sampleCount(150), torn: true },
  );
  expect(violations).toEqual([]);
  expect(states).toBeGreaterThan(5);

  async function checkAbove(opened: OpenedImage, done: boolean): Promise<void> {
    if (opened.size === to) return;
    if (opened.size !== OLD || done) throw new Error(`guest size is ${opened.size}`);
    const above = await opened.read(to, OLD - to);
    for (let at = 0; at < above.length; at += SECTOR) {
      const found = Buffer.from(above.subarray(at, at + SECTOR));
      const old = content.subarray(to + at, to + at + SECTOR);
      if (!found.equals(old)) throw new Error(`the sector at ${to + at} is not what it was`);
    }
  }
}

describe('shrinking qcow2 images survives crashes', () => {
  const filled = (guest: Guest): Promise<void> => guest.write(0, OLD, 1);
  const fragmented = async (guest: Guest): Promise<void> => {
    await guest.write(200 * K, 40 * K, 1);
    await guest.write(0, 20 * K, 2);
    await guest.write(60 * K, 50 * K, 3);
    await guest.zero(70 * K, 2 * K);
  };
  /** Takes the clusters that the shrinking has set free. */
  const reuse = async (guest: Guest): Promise<void> => {
    await guest.write(2 * K, 3 * K, 5);
    await guest.discard(4 * K, 4 * K);
    await guest.write(20 * K, 12 * K, 6);
    await guest.flush();
    await guest.write(8 * K, 4 * K, 7);
  };
  const cases: Readonly<Record<string, Shrinking>> = {
    'an image full of data': { to: 64 * K, before: filled },
    'to the middle of a cluster': {
      to: 33 * K + 512,
      options: { cluster_size: 4096 },
      before: filled,
    },
    'to nothing': { to: 0, before: fragmented },
    'to nothing but one sector': { to: 512, before: fragmented },
    'freed clusters taken again': { to: 40 * K, before: fragmented, after: reuse },
    'after writes that are not flushed': {
      to: 40 * K,
      before: fragmented,
      act: async (guest) => {
        await guest.write(10 * K, 20 * K, 4);
        await guest.zero(K, 2 * K);
      },
      after: reuse,
    },
    'clusters shared with a snapshot': {
      to: 16 * K,
      before: (guest) => guest.write(0, 30 * K, 1),
      snapshot: true,
    },
    'and writes over what a snapshot shares': {
      to: 40 * K,
      before: async (guest) => {
        await guest.write(0, 24 * K, 1);
        await guest.write(200 * K, 8 * K, 2);
      },
      snapshot: true,
      after: reuse,
    },
    'compressed clusters': {
      to: 16 * K,
      options: { cluster_size: 4096 },
      before: async (guest) => {
        for (let at = 0; at < 64 * K; at += 4096) await guest.pack(at, at / 4096);
      },
      after: (guest) => guest.write(4096, 4096, 9),
    },
    'over a backing file': {
      to: 24 * K,
      backing: pattern(0, 100 * K, 8),
      before: (guest) => guest.write(20 * K, 60 * K, 1),
      after: (guest) => guest.write(0, 8 * K, 2),
    },
    'with a data file': { to: 64 * K, options: { data_file: 'data' }, before: fragmented },
    'lazy refcounts': { to: 40 * K, options: { lazy_refcounts: true }, before: fragmented, after: reuse },
    'extended L2 entries': {
      to: 41 * K,
      options: { cluster_size: 16 * K, extended_l2: true },
      before: fragmented,
      after: (guest) => guest.write(8 * K, 24 * K, 4),
    },
    'version 2': {
      to: 40 * K,
      options: { compat: '0.10' },
      before: (guest) => guest.write(0, 100 * K, 1),
      after: (guest) => guest.write(2 * K, 20 * K, 2),
    },
    'refcounts of one bit': { to: 40 * K, options: { refcount_bits: 1 }, before: fragmented, after: reuse },
  };
  for (const [name, test] of Object.entries(cases)) {
    it(name, { timeout: 300_000 }, () => shrinkSurvives(test));
  }
});
