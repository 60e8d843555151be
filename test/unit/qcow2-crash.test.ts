/** Resizing survives crashes: the image opens, is not corrupt, and keeps the guest content that both sizes have. */
import { describe, expect, it } from 'vitest';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import type { Preallocation } from '../../src/engine/storage/storage.js';
import { sampleCount, verifyCrashes } from '../crash/invariants.js';
import { PagedStorage } from '../crash/paged.js';
import { createOn, IMAGE, openCrashed, openOn } from '../crash/qcow2.js';
import { CrashLog, RecordingStorage } from '../crash/recorder.js';
import { stamp } from './qcow2-support.js';

const KiB = 1024;

async function resizing(
  options: OptionValues,
  from: number,
  to: number,
  preallocation: Preallocation,
): Promise<readonly string[]> {
  const image = new PagedStorage(IMAGE);
  await createOn({ image }, from, { cluster_size: 512, ...options });
  const content = stamp(0, from, 3);
  const before = await openOn({ image }, { writable: true });
  await before.write(0, content);
  await before.close();

  const log = new CrashLog();
  const start = new Map([[IMAGE, image.fork()]]);
  const recorded = new RecordingStorage(image, log, IMAGE);
  const node = await openOn({ image: recorded }, { writable: true });
  await node.format.resize!(to, { preallocation });
  await node.close();

  const kept = Math.min(from, to);
  const { states, violations } = await verifyCrashes(
    log,
    start,
    {
      open: async (state) => {
        const opened = await openCrashed(state.files, undefined);
        if (opened.size !== from && opened.size !== to) throw new Error(`guest size is ${opened.size}`);
        const found = await opened.read(0, kept);
        if (Buffer.compare(found, content.subarray(0, kept)) !== 0)
          throw new Error('guest content has changed');
        return opened;
      },
    },
    { seed: 1, samples: sampleCount(100), torn: true },
  );
  expect(states).toBeGreaterThan(3);
  return violations;
}

describe('qcow2: resizing survives crashes', () => {
  const cases: readonly (readonly [string, OptionValues, number, number, Preallocation])[] = [
    ['grown within the L1 table', {}, 70 * KiB, 90 * KiB, 'off'],
    ['grown with a longer L1 table', {}, 64 * KiB, 8192 * KiB, 'off'],
    ['grown and preallocated', {}, 64 * KiB, 512 * KiB, 'metadata'],
    ['grown, with refcount blocks of few entries', { refcount_bits: 64 }, 64 * KiB, 512 * KiB, 'metadata'],
    ['shrunk', {}, 512 * KiB, 40 * KiB, 'off'],
    ['shrunk inside a cluster', { compat: '0.10', cluster_size: 4096 }, 512 * KiB, 41 * KiB, 'off'],
  ];
  for (const [name, options, from, to, preallocation] of cases) {
    it(name, async () => {
      expect(await resizing(options, from, to, preallocation)).toEqual([]);
    });
  }
});
