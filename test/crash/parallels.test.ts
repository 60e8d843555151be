/** Crashes while Parallels images are written and repaired. */
import { describe, expect, it } from 'vitest';
import { parallels } from '../../src/engine/formats/parallels/index.js';
import { Header } from '../../src/engine/formats/parallels/layout.js';
import { CLUSTER, parallelsImage } from '../unit/parallels-images.js';
import { type Found, GuestHistory, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { IMAGE, openCrashed, openOn } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { type Scenario, survives as survivesAll } from './scenario.js';

const K = 1024;
const UNCLEAN = 'ERROR image was not closed correctly';

/** An image that is in use says so, and the check calls that an error: the only one there may be. */
function inUseAllowed(found: Found): Found {
  if (!found.lines.includes(UNCLEAN)) return found;
  return { ...found, result: { ...found.result, corruptions: found.result.corruptions - 1 } };
}

const survives = (scenario: Omit<Scenario, 'driver'>) =>
  survivesAll({ ...scenario, driver: parallels, judge: inUseAllowed });

describe('parallels: crashes while', { timeout: 120_000 }, () => {
  const options = { cluster_size: 4 * K };

  it('a new image is written', async () => {
    await survives({
      size: 64 * K,
      options,
      async act(guest) {
        await guest.write(10 * K + 100, 3000, 1);
        await guest.flush();
        await guest.write(0, 9 * K, 2);
        await guest.write(10 * K, K, 3);
      },
    });
  });

  it('clusters are freed and used again', async () => {
    await survives({
      size: 64 * K,
      options,
      before: (guest) => guest.write(0, 20 * K, 1),
      async act(guest) {
        await guest.zero(4 * K, 8 * K);
        await guest.write(40 * K + 512, 512, 2);
        await guest.flush();
        await guest.write(44 * K + 512, 512, 3);
        await guest.discard(0, 4 * K);
        await guest.write(0, 512, 4);
      },
      samples: 250,
    });
  });

  it('several write at once', async () => {
    await survives({
      size: 64 * K,
      options,
      before: (guest) => guest.write(0, 8 * K, 1),
      async act(guest) {
        await Promise.all([
          guest.write(100, 2000, 2),
          guest.write(20 * K, 8 * K, 3),
          guest.flush(),
          guest.zero(4 * K, 4 * K),
          guest.write(48 * K + 5, 5 * K, 4),
        ]);
        await guest.write(4 * K, 512, 5);
      },
      samples: 250,
    });
  });

  it('it is repaired', async () => {
    const broken = parallelsImage({ bat: [2, 2, 0, 1], clusters: 6, header: { dataOff: 1000 } });
    const image = new PagedStorage(IMAGE, broken);
    const before = new Uint8Array(4 * CLUSTER);
    const reading = await openOn({ image }, { writable: false, driver: parallels });
    await reading.read(0, before);
    const log = new CrashLog();
    const start = new Map([[IMAGE, image.fork()]]);
    const recorded = new RecordingStorage(image, log, IMAGE);
    const node = await openOn({ image: recorded }, { writable: true, forCheck: true, driver: parallels });
    await node.format.checker!.check({ repair: { leaks: true, errors: true }, report: () => {} });
    await node.close();
    const { violations } = await verifyCrashes(
      log,
      start,
      {
        // Not checked on the way: it is as broken as it was, or less. What the guest sees stays.
        open: async (state) => {
          const { check: _, ...opened } = await openCrashed(state.files, undefined, { driver: parallels });
          return opened;
        },
        history: new GuestHistory(log, before),
      },
      { seed: 1, samples: sampleCount(100), torn: true },
    );
    expect(violations).toEqual([]);
    expect(Header.decode(image.bytes()).dataOff).toBe(8);
  });
});
