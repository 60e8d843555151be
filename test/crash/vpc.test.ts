/** VHD: at every instant a footer is at the end of the file, and no table entry is ahead of its block. */
import { describe, expect, it } from 'vitest';
import { vpc } from '../../src/engine/formats/vpc/index.js';
import type { FormatDriver } from '../../src/engine/node/driver.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { BLOCK, dynamic, fixed } from '../unit/vpc-images.js';
import { GuestHistory, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { createOn, IMAGE, openCrashed } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { type Guest, pattern, survives } from './scenario.js';

const SIZE = 64 * BLOCK;

/** Blocks of 4 KiB, which the reference reads but does not make: a state is small enough to be looked at whole. */
function small(gap?: Uint8Array): FormatDriver {
  return {
    ...vpc,
    create: ({ file, size }) => file.write(0, dynamic({ size, ...(gap === undefined ? {} : { gap }) })),
  };
}

const onFixed: FormatDriver = {
  ...vpc,
  create: ({ file, size }) => file.write(0, fixed(new Uint8Array(size))),
};

const some = async (guest: Guest): Promise<void> => {
  await guest.write(3 * BLOCK, 2 * BLOCK, 1);
  await guest.write(20 * BLOCK + 512, 1024, 2);
};

describe('writing into VHD images survives crashes', { timeout: 300_000 }, () => {
  it('new blocks, whole and in part, with and without flushes between', async () => {
    const states = await survives({
      driver: small(),
      size: SIZE,
      act: async (guest) => {
        await guest.write(0, 3 * BLOCK, 1);
        await guest.write(10 * BLOCK + 1024, 512, 2);
        await guest.flush();
        await guest.write(10 * BLOCK, 4 * BLOCK, 3);
        await guest.write(5 * BLOCK - 512, 1024, 4);
        await guest.flush();
        await guest.write(62 * BLOCK, 2 * BLOCK, 5);
      },
    });
    expect(states).toBeGreaterThan(20);
  });

  it('over old content', () =>
    survives({
      driver: small(),
      size: SIZE,
      before: some,
      act: async (guest) => {
        await guest.write(2 * BLOCK, 4 * BLOCK, 3);
        await guest.flush();
        await guest.write(20 * BLOCK, 2 * BLOCK, 4);
      },
    }));

  it('several writers at once', () =>
    survives({
      driver: small(),
      size: SIZE,
      before: some,
      act: async (guest) => {
        await Promise.all(
          [0, 4, 17, 30, 31, 50].map((block, i) => guest.write(block * BLOCK, 3 * BLOCK, 10 + i)),
        );
        await guest.flush();
        await Promise.all([8, 19, 40].map((block, i) => guest.write(block * BLOCK + 512, BLOCK, 20 + i)));
      },
    }));

  it('zeros', () =>
    survives({
      driver: small(),
      size: SIZE,
      before: some,
      act: async (guest) => {
        await guest.zero(3 * BLOCK + 512, 2 * BLOCK, true);
        await guest.flush();
        await guest.zero(0, SIZE);
        await guest.write(4 * BLOCK, BLOCK, 6);
      },
    }));

  it('over what another crash has left behind the last block', () =>
    survives({
      driver: small(pattern(0, 5 * 4608 + 512, 99)),
      size: SIZE,
      act: async (guest) => {
        await guest.write(BLOCK + 512, 512, 1);
        await guest.flush();
        await guest.write(8 * BLOCK + 1024, 7 * BLOCK, 2);
      },
    }));

  it('fixed disks', () =>
    survives({
      driver: onFixed,
      size: SIZE,
      act: async (guest) => {
        await guest.write(512, 3 * BLOCK, 1);
        await guest.flush();
        await guest.zero(BLOCK, BLOCK);
        await guest.write(SIZE - BLOCK, BLOCK, 2);
      },
    }));
});

describe('creation of VHD images survives crashes', { timeout: 60_000 }, () => {
  const creationSurvives = async (options: OptionValues, old?: Uint8Array): Promise<void> => {
    const size = 128 * 1024;
    const log = new CrashLog();
    const start = new Map([[IMAGE, new PagedStorage(IMAGE, old)]]);
    const image = new RecordingStorage(start.get(IMAGE)!.fork(), log, IMAGE);
    if (old !== undefined) await image.truncate(0);
    await createOn({ image }, size, { force_size: true, ...options }, vpc);
    const created = log.mark('created');
    const { violations } = await verifyCrashes(
      log,
      start,
      {
        open: (state) => openCrashed(state.files, undefined, { driver: vpc }),
        history: new GuestHistory(log, new Uint8Array(size)),
        mustOpen: (state) => state.time >= created,
      },
      { seed: 1, samples: sampleCount(100), torn: true },
    );
    expect(violations).toEqual([]);
  };
  it('dynamic', () => creationSurvives({}));
  it('fixed', () => creationSurvives({ subformat: 'fixed' }));
  it('over a file that had something else in it', () =>
    creationSurvives({}, new Uint8Array(20_000).fill(0x51)));
});
