/** VMDK images: whatever moment the power fails at, the image opens, has leaks at most, and nothing is neither old nor new. */
import { describe, expect, it } from 'vitest';
import { vmdk } from '../../src/engine/formats/vmdk/index.js';
import type { FormatDriver } from '../../src/engine/node/driver.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { GuestHistory, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { createOn, DATA, IMAGE, openCrashed } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { pattern, survives } from './scenario.js';

const K = 1024;
const GRAIN = 64 * K;
/** `data_file` only has the suite keep a second file, which is the extent. */
const SPLIT: OptionValues = { subformat: 'twoGbMaxExtentSparse', data_file: 'data' };
const FLAT: OptionValues = { subformat: 'monolithicFlat', data_file: 'data' };
const STREAM: OptionValues = { subformat: 'streamOptimized' };

/** The suite's backing files are raw: the image gets one from the outside, and does not record it. */
const overRaw: FormatDriver = {
  ...vmdk,
  create: ({ backing: _, ...context }) => vmdk.create!(context),
};

describe('VMDK writes survive crashes', () => {
  for (const options of [{}, { zeroed_grain: true }, SPLIT] as readonly OptionValues[]) {
    it(`new grains and grains overwritten ${JSON.stringify(options)}`, () =>
      survives({
        driver: vmdk,
        size: 8 * GRAIN,
        options,
        before: (guest) => guest.write(0, 20 * K, 1),
        async act(guest) {
          await guest.write(K, 2 * K, 2);
          await guest.write(3 * GRAIN + 100, 70 * K, 3);
          await guest.flush();
          await guest.write(GRAIN + 100, 700, 4);
          await guest.write(6 * GRAIN - 512, 1024, 5);
        },
        samples: 40,
      }));
  }

  it('many tables, many writes at once', () =>
    survives({
      driver: vmdk,
      size: 8 * GRAIN,
      options: {},
      async act(guest) {
        const work: Promise<void>[] = [];
        for (let index = 0; index < 7; index++) work.push(guest.write(index * GRAIN + K, 2 * K, 2 + index));
        await Promise.all([...work, guest.flush()]);
        await guest.flush();
        await Promise.all([
          guest.write(7 * GRAIN, 10 * K, 40),
          guest.write(30 * K, 12 * K, 41),
          guest.flush(),
        ]);
      },
      samples: 40,
    }));

  it('unaligned over a backing file', () =>
    survives({
      driver: overRaw,
      size: 3 * GRAIN + 512,
      options: {},
      backing: pattern(0, 2 * GRAIN + 5 * K, 9),
      async act(guest) {
        await guest.write(100, 200, 1);
        await guest.write(2 * GRAIN - 50, 100, 2);
        await guest.flush();
        await guest.write(3 * GRAIN, 512, 3);
        await guest.zero(10 * K, 8 * K);
      },
      samples: 40,
    }));

  it('zeroed grains', () =>
    survives({
      driver: overRaw,
      size: 5 * GRAIN,
      options: { zeroed_grain: true },
      backing: pattern(0, 5 * GRAIN, 9),
      before: (guest) => guest.write(0, 2 * GRAIN, 1),
      async act(guest) {
        await guest.zero(0, GRAIN);
        await guest.zero(3 * GRAIN - 100, GRAIN + 200, true);
        await guest.flush();
        await guest.zero(GRAIN, 4 * GRAIN);
        await guest.write(GRAIN + K, K, 2);
      },
      samples: 40,
    }));

  it('flat', () =>
    survives({
      driver: vmdk,
      size: 100 * K,
      options: FLAT,
      before: (guest) => guest.write(0, 60 * K, 1),
      async act(guest) {
        await guest.write(100, 13 * K, 2);
        await guest.zero(50 * K, 20 * K);
        await guest.flush();
        await guest.write(99 * K, K, 3);
      },
      samples: 40,
    }));
});

describe('VMDK streams survive crashes', () => {
  it('written front to back', () =>
    survives({
      driver: vmdk,
      size: 6 * GRAIN,
      options: STREAM,
      async act(guest) {
        await guest.pack(0, 1);
        await guest.pack(2 * GRAIN, 2);
        await guest.pack(3 * GRAIN, 3);
      },
      samples: 60,
    }));

  it('gone on with after a flush, and in no order', () =>
    survives({
      driver: vmdk,
      size: 6 * GRAIN,
      options: STREAM,
      before: (guest) => guest.pack(4 * GRAIN, 7),
      async act(guest) {
        await guest.pack(GRAIN, 1);
        await guest.flush();
        await guest.write(2 * GRAIN, 2 * GRAIN, 2);
        await guest.pack(0, 3);
        await guest.flush();
        await guest.pack(5 * GRAIN, 4);
      },
      samples: 60,
    }));
});

describe('VMDK creation survives crashes', () => {
  for (const options of [{}, { zeroed_grain: true }, STREAM, SPLIT, FLAT] as readonly OptionValues[]) {
    it(JSON.stringify(options), async () => {
      const log = new CrashLog();
      const names = options.data_file === undefined ? [IMAGE] : [IMAGE, DATA];
      const old = new Uint8Array(40_000).fill(0x51);
      const start = new Map(names.map((name) => [name, new PagedStorage(name, old)]));
      const [image, data] = names.map((name) => new RecordingStorage(start.get(name)!.fork(), log, name));
      // Whoever opens files for creation has emptied them.
      await image!.truncate(0);
      await data?.truncate(0);
      await createOn({ image: image!, data }, 3 * GRAIN, options, vmdk);
      const created = log.mark('created');
      const { violations } = await verifyCrashes(
        log,
        start,
        {
          open: (state) => openCrashed(state.files, undefined, { driver: vmdk }),
          history: new GuestHistory(log, new Uint8Array(3 * GRAIN)),
          mustOpen: (state) => state.time >= created,
        },
        { seed: 1, samples: sampleCount(60), torn: true },
      );
      expect(violations).toEqual([]);
    });
  }
});
