/**
 * `check -r` of qcow2 images: a crash in the middle leaves the guest's content as it was, no damage that was not there
 * before, and an image that the next repair makes sound.
 */
import { describe, expect, it } from 'vitest';
import type { CheckResult } from '../../src/engine/node/driver.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { GuestHistory, type OpenedImage, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { addSnapshot, createOn, IMAGE, openCrashed, openOn } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { pattern } from './scenario.js';

const K = 1024;
const COPIED = 1n << 63n;

/** The metadata of a small image, to be patched. */
class Patch {
  readonly bytes: Buffer;

  constructor(image: PagedStorage, length = image.size) {
    this.bytes = Buffer.alloc(Math.max(length, image.size));
    image.get(0, this.bytes.subarray(0, image.size));
  }
  get(at: number): bigint {
    return this.bytes.readBigUInt64BE(at);
  }
  set(at: number, value: bigint): void {
    this.bytes.writeBigUInt64BE(value, at);
  }
  offset(at: number): number {
    return Number(this.get(at) & 0x00fffffffffffe00n);
  }
  l2(entry: number): number {
    return this.offset(this.offset(40)) + entry * 8;
  }
  reftable(entry = 0): number {
    return this.offset(48) + entry * 8;
  }
  setRefcount(cluster: number, count: number): void {
    this.bytes.writeUInt16BE(count, this.offset(this.reftable()) + cluster * 2);
  }
}

interface Damage {
  readonly options?: OptionValues;
  readonly snapshot?: boolean;
  /** The file has no free clusters: what is new comes behind its end. */
  readonly tight?: boolean;
  readonly repair: 'leaks' | 'all';
  damage(patch: Patch): void;
  /**
   * Corruptions that may be seen on the way where they are other ones than before: a refcount is raised first, and the
   * copied flags of all entries that share the cluster contradict it until they are cleared. The other way round a
   * writer would in between give the cluster away.
   */
  readonly transient?: number;
  /** Some damage stays: a repair cannot invent data. */
  readonly remains?: number;
}

async function repairIn(files: ReadonlyMap<string, PagedStorage>): Promise<CheckResult> {
  const image = await openOn({ image: files.get(IMAGE)! }, { writable: true, forCheck: true });
  const result = await image.format.checker!.check({
    repair: { leaks: true, errors: true },
    report: () => {},
  });
  await image.close();
  return result;
}

async function repairSurvives(test: Damage): Promise<void> {
  const image = new PagedStorage(IMAGE);
  await createOn({ image }, 128 * K, { cluster_size: 512, ...test.options });
  const guest = await openOn({ image }, { writable: true });
  await guest.write(0, pattern(0, 20 * K, 1));
  await guest.write(100 * K, pattern(100 * K, 4 * K, 2));
  await guest.close();
  if (test.snapshot === true) addSnapshot(image, 'one');
  const patch = new Patch(image, image.size + (test.tight === true ? 0 : 20 * 512));
  test.damage(patch);
  image.put(0, patch.bytes);

  const start = new Map([[IMAGE, image.fork()]]);
  const opened = await openCrashed(new Map([[IMAGE, image.fork()]]), undefined, { forCheck: true });
  const content = await opened.read(0, opened.size);
  const { result: before } = await opened.check!();

  const log = new CrashLog();
  const recorded = new RecordingStorage(image, log, IMAGE);
  const node = await openOn({ image: recorded }, { writable: true, forCheck: true });
  await node.format.checker!.check({
    repair: { leaks: true, errors: test.repair === 'all' },
    report: () => {},
  });
  await node.close();
  const { violations } = await verifyCrashes(
    log,
    start,
    {
      async open(state): Promise<OpenedImage> {
        const files = new Map([...state.files].map(([name, storage]) => [name, storage.fork()]));
        const seen = await openCrashed(state.files, undefined, { forCheck: true });
        return {
          ...seen,
          async check() {
            const found = await seen.check!();
            // and what a crash has left can be repaired again, without harm to the guest
            await repairIn(files);
            const after = await openCrashed(files, undefined, { forCheck: true });
            const again = await after.check!();
            const kept = Buffer.compare(await after.read(0, after.size), content) === 0;
            await after.close();
            if (!kept || again.result.corruptions > (test.remains ?? 0) || again.result.leaks > 0) {
              throw new Error(
                `a second repair ${kept ? 'leaves damage' : 'changes the content'}: ${again.lines.join('; ')}`,
              );
            }
            return found;
          },
        };
      },
      history: new GuestHistory(log, content),
      corruptions: () => test.transient ?? before.corruptions,
    },
    { seed: 1, samples: sampleCount(120), torn: true },
  );
  expect(violations).toEqual([]);
  const last = await openCrashed(new Map([[IMAGE, image]]), undefined, { forCheck: true });
  const { result, lines } = await last.check!();
  if (test.repair === 'all') expect(lines.slice(test.remains ?? 0)).toEqual([]);
  else expect(result.leaks).toBe(0);
}

describe('check -r of qcow2 images survives crashes', () => {
  const leak = (patch: Patch): void => {
    for (const cluster of [70, 72, 73]) patch.setRefcount(cluster, 1);
    patch.setRefcount(6, 3);
  };
  const cases: Readonly<Record<string, Damage>> = {
    'leaks, -r leaks': { repair: 'leaks', damage: leak },
    'leaks, -r all': { repair: 'all', damage: leak },
    'refcounts too low': {
      repair: 'all',
      transient: 4,
      damage: (p) => {
        p.set(p.l2(60), p.get(p.l2(0)));
        p.set(p.l2(61), p.get(p.l2(1)));
      },
    },
    'refcounts too low under a snapshot': {
      repair: 'all',
      snapshot: true,
      damage: (p) => {
        for (const cluster of [5, 6, 7]) p.setRefcount(cluster, 1);
      },
    },
    'refcounts of zero': { repair: 'all', damage: (p) => p.setRefcount(7, 0) },
    'a refcount block of zeros': {
      repair: 'all',
      damage: (p) => p.bytes.fill(0, p.offset(p.reftable()), p.offset(p.reftable()) + 512),
    },
    'a refcount block of garbage': {
      repair: 'all',
      damage: (p) => {
        const at = p.offset(p.reftable());
        for (let index = 0; index < 512; index++) p.bytes[at + index] = (index * 37) % 3;
      },
    },
    'a lost refcount table entry': { repair: 'all', damage: (p) => p.set(p.reftable(), 0n) },
    'a refcount table entry with reserved bits': {
      repair: 'all',
      damage: (p) => p.set(p.reftable(), p.get(p.reftable()) | 3n),
    },
    'a refcount block used twice': {
      repair: 'all',
      damage: (p) => p.set(p.reftable(1), p.get(p.reftable())),
    },
    'a refcount block that is an L2 table': {
      repair: 'all',
      damage: (p) => p.set(p.reftable(), BigInt(p.l2(0))),
    },
    'a refcount block outside of the file': {
      repair: 'all',
      damage: (p) => p.set(p.reftable(1), 0x40000n),
    },
    'a lost refcount, and an entry that points just behind the end': {
      repair: 'all',
      tight: true,
      damage: (p) => {
        p.setRefcount(7, 0);
        p.set(p.l2(60), COPIED | BigInt(p.bytes.length));
        p.set(p.l2(61), COPIED | BigInt(p.bytes.length + 1024));
      },
    },
    'lost copied flags': {
      repair: 'all',
      damage: (p) => {
        for (const entry of [0, 3, 9]) p.set(p.l2(entry), p.get(p.l2(entry)) & ~COPIED);
      },
    },
    'a damaged block of wide refcounts': {
      repair: 'all',
      options: { refcount_bits: 64 },
      damage: (p) => p.bytes.fill(0, p.offset(p.reftable()), p.offset(p.reftable()) + 100),
    },
    'the dirty and the corrupt bit': {
      repair: 'all',
      damage: (p) => {
        p.set(72, 3n);
        p.setRefcount(9, 0);
        p.setRefcount(80, 2);
      },
    },
    'an incomplete snapshot table': {
      repair: 'all',
      snapshot: true,
      damage: (p) => {
        const at = p.offset(64);
        const text = Buffer.from(p.bytes.subarray(at + 64, at + 68));
        p.bytes.writeUInt32BE(0, at + 36);
        p.bytes.fill(0, at + 40, at + 68);
        text.copy(p.bytes, at + 40);
      },
    },
  };
  for (const [name, test] of Object.entries(cases)) it(name, () => repairSurvives(test));
});
