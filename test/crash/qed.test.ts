/** QED images: whatever moment the power fails at, the image opens, has leaks at most, and nothing is neither old nor new. */
import { describe, expect, it } from 'vitest';
import { qed } from '../../src/engine/formats/qed/index.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { GuestHistory, type OpenedImage, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { createOn, IMAGE, openCrashed, openOn } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { pattern, survives } from './scenario.js';

const K = 1024;
const SMALL: OptionValues = { cluster_size: 4096, table_size: 2 };

describe('QED writes survive crashes', () => {
  it('new clusters and clusters overwritten', () =>
    survives({
      driver: qed,
      size: 256 * K,
      options: SMALL,
      before: (guest) => guest.write(0, 20 * K, 1),
      async act(guest) {
        await guest.write(K, 2 * K, 2);
        await guest.write(100 * K + 100, 7 * K, 3);
        await guest.flush();
        await guest.write(40 * K + 100, 700, 4);
        await guest.write(101 * K, 512, 5);
      },
    }));

  it('new tables', () =>
    survives({
      driver: qed,
      size: 12 * K * K,
      options: SMALL,
      async act(guest) {
        await guest.write(0, 3 * K, 1);
        await guest.write(4 * K * K - 2 * K, 6 * K, 2);
        await guest.flush();
        await Promise.all([guest.write(9 * K * K, K, 3), guest.write(10 * K * K, K, 4)]);
      },
      samples: 25,
    }));

  it('unaligned over a backing file', () =>
    survives({
      driver: qed,
      size: 64 * K,
      options: SMALL,
      backing: pattern(0, 50 * K, 9),
      async act(guest) {
        await guest.write(100, 200, 1);
        await guest.write(3 * 4096 - 50, 100, 2);
        await guest.flush();
        await guest.write(50 * K - 10, 100, 3);
        await guest.zero(16 * K, 8 * K);
        await guest.write(17 * K, 100, 4);
      },
    }));

  it('zeros', () =>
    survives({
      driver: qed,
      size: 128 * K,
      options: SMALL,
      before: (guest) => guest.write(0, 60 * K, 1),
      async act(guest) {
        await guest.zero(0, 8 * K);
        await guest.zero(10 * K + 100, 13 * K, true);
        await guest.flush();
        await guest.zero(60 * K, 20 * K);
        await guest.write(64 * K, K, 2);
      },
    }));

  it('many writes at once', () =>
    survives({
      driver: qed,
      size: 256 * K,
      options: SMALL,
      before: (guest) => guest.write(0, 16 * K, 1),
      async act(guest) {
        const work: Promise<void>[] = [];
        for (let index = 0; index < 12; index++) work.push(guest.write(index * 17 * K, 2 * K, 2 + index));
        await Promise.all([...work, guest.flush()]);
        await guest.flush();
        await Promise.all([guest.write(200 * K, 10 * K, 40), guest.zero(30 * K, 12 * K), guest.flush()]);
      },
    }));

  it('an image grown', () =>
    survives({
      driver: qed,
      size: 60 * K,
      grown: 300 * K,
      options: SMALL,
      before: (guest) => guest.write(0, 4 * K, 1),
      async act(guest) {
        await guest.write(8 * K, K, 2);
        await guest.image.format.resize!(300 * K, { preallocation: 'off' });
        await guest.write(250 * K, 3 * K, 3);
        await guest.flush();
        await guest.write(61 * K, 3 * K, 4);
      },
    }));
});

describe('QED metadata survives crashes', () => {
  it('creation, over a file that had something in it', async () => {
    const log = new CrashLog();
    const start = new Map([[IMAGE, new PagedStorage(IMAGE, new Uint8Array(40_000).fill(0x51))]]);
    const image = new RecordingStorage(start.get(IMAGE)!.fork(), log, IMAGE);
    await image.truncate(0);
    await createOn({ image }, 256 * K, SMALL, qed);
    const created = log.mark('created');
    const { violations } = await verifyCrashes(
      log,
      start,
      {
        open: (state) => openCrashed(state.files, undefined, { driver: qed }),
        history: new GuestHistory(log, new Uint8Array(256 * K)),
        mustOpen: (state) => state.time >= created,
      },
      { seed: 1, samples: sampleCount(150), torn: true },
    );
    expect(violations).toEqual([]);
  });

  const names = ['other', 'n'.repeat(447), 'n'.repeat(448), 'n'.repeat(1023), 'n'.repeat(1500)];
  for (const from of [undefined, 'short', 'o'.repeat(900), 'o'.repeat(1500)]) {
    for (const to of [undefined, ...names]) {
      it(`backing file of ${from?.length ?? 'no'} characters to ${to?.length ?? 'no'}`, async () => {
        const image = new PagedStorage(IMAGE);
        await createOn({ image }, 64 * K, SMALL, qed);
        const before = await openOn({ image }, { writable: true, driver: qed });
        await before.format.changeBacking!(from, 'qcow2');
        await before.close();
        const log = new CrashLog();
        const start = new Map([[IMAGE, image.fork()]]);
        const node = await openOn(
          { image: new RecordingStorage(image, log, IMAGE) },
          { writable: true, driver: qed },
        );
        await node.format.changeBacking!(to, 'raw');
        const changed = log.mark('changed');
        await node.close();
        const { violations } = await verifyCrashes(
          log,
          start,
          {
            async open(state): Promise<OpenedImage> {
              const opened = await openOn(
                { image: state.files.get(IMAGE)! },
                { writable: false, driver: qed },
              );
              const found = opened.format.backing;
              const isNew = found?.filename === to && (to === undefined || found?.format === 'raw');
              const isOld = found?.filename === from && found?.format === undefined;
              if (!isNew && (state.time >= changed || !isOld)) throw new Error(`neither: ${found?.filename}`);
              return {
                size: opened.size,
                read: async (_at, length) => new Uint8Array(length),
                close: () => opened.close(),
              };
            },
          },
          { seed: 1, samples: sampleCount(40), torn: true },
        );
        expect(violations).toEqual([]);
      });
    }
  }

  it('repair', async () => {
    const image = new PagedStorage(IMAGE);
    await createOn({ image }, 8 * K * K, SMALL, qed);
    const guest = await openOn({ image }, { writable: true, driver: qed });
    await guest.write(0, pattern(0, 40 * K, 1));
    await guest.write(5 * K * K, pattern(0, 4 * K, 2));
    await guest.close();
    const bytes = Buffer.from(image.bytes());
    const l2 = Number(bytes.readBigUInt64LE(4096));
    bytes.writeBigUInt64LE(5n, l2);
    bytes.writeBigUInt64LE(0x4000000n, l2 + 16);
    bytes.writeBigUInt64LE(0x123000000n, 4096 + 16);
    bytes.writeBigUInt64LE(2n, 16);
    image.put(0, bytes);
    const log = new CrashLog();
    const start = new Map([[IMAGE, image.fork()]]);
    const node = await openOn(
      { image: new RecordingStorage(image, log, IMAGE) },
      { writable: true, forCheck: true, driver: qed },
    );
    const repair = { leaks: true, errors: true };
    const result = await node.format.checker!.check({ repair, report: () => {} });
    expect(result).toMatchObject({ corruptions: 0, corruptionsFixed: 3 });
    await node.close();
    const { violations } = await verifyCrashes(
      log,
      start,
      {
        async open(state): Promise<OpenedImage> {
          const files = state.files;
          const wasClean = (() => {
            const head = new Uint8Array(24);
            files.get(IMAGE)!.get(0, head);
            return (head[16]! & 2) === 0;
          })();
          // Who writes next repairs first, unless the image says that it need not be.
          await (await openOn({ image: files.get(IMAGE)! }, { writable: !wasClean, driver: qed })).close();
          return openCrashed(files, undefined, { driver: qed });
        },
      },
      { seed: 1, samples: sampleCount(100), torn: true },
    );
    expect(violations).toEqual([]);
  });
});
