/** qcow images: whatever moment the power fails at, the image opens and nothing is neither old nor new. */
import { describe, expect, it } from 'vitest';
import { qcow } from '../../src/engine/formats/qcow/index.js';
import { GuestHistory, type OpenedImage, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { createOn, IMAGE, openCrashed, openOn } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { pattern, survives } from './scenario.js';

const K = 1024;

describe('qcow writes survive crashes', () => {
  it('new clusters and clusters overwritten', () =>
    survives({
      driver: qcow,
      size: 256 * K,
      before: (guest) => guest.write(0, 20 * K, 1),
      async act(guest) {
        await guest.write(K, 2 * K, 2);
        await guest.write(100 * K + 100, 7 * K, 3);
        await guest.flush();
        await guest.write(40 * K + 100, 700, 4);
        await guest.zero(101 * K, 3 * K);
      },
    }));

  it('new tables', () =>
    survives({
      driver: qcow,
      size: 6 * K * K,
      async act(guest) {
        await guest.write(0, 3 * K, 1);
        await guest.write(2 * K * K - 2 * K, 6 * K, 2);
        await guest.flush();
        await Promise.all([guest.write(4 * K * K, K, 3), guest.write(5 * K * K, K, 4)]);
      },
      samples: 30,
    }));

  it('unaligned over a backing file', () =>
    survives({
      driver: qcow,
      size: 64 * K,
      backing: pattern(0, 50 * K, 9),
      async act(guest) {
        await guest.write(100, 200, 1);
        await guest.write(3 * 4096 - 50, 100, 2);
        await guest.flush();
        await guest.write(50 * K - 10, 100, 3);
      },
    }));

  it('compressed clusters written and overwritten', () =>
    survives({
      driver: qcow,
      size: 64 * K,
      before: async (guest) => {
        for (let index = 0; index < 6; index++) await guest.pack(index * 4096, index);
      },
      async act(guest) {
        await guest.write(4096 + 100, 300, 7);
        await guest.pack(2 * 4096, 8);
        await guest.flush();
        await guest.write(3 * 4096, 4096, 9);
        await guest.pack(40 * K, 10);
        await guest.pack(3 * 4096, 11);
      },
    }));

  it('many writes at once', () =>
    survives({
      driver: qcow,
      size: 256 * K,
      before: (guest) => guest.write(0, 16 * K, 1),
      async act(guest) {
        const work: Promise<void>[] = [];
        for (let index = 0; index < 12; index++) work.push(guest.write(index * 17 * K, 2 * K, 2 + index));
        await Promise.all([...work, guest.flush()]);
        await guest.flush();
        await Promise.all([guest.write(200 * K, 10 * K, 40), guest.pack(32 * K, 5), guest.flush()]);
      },
    }));
});

describe('qcow metadata survives crashes', () => {
  it('creation, over a file that had something in it', async () => {
    const log = new CrashLog();
    const start = new Map([[IMAGE, new PagedStorage(IMAGE, new Uint8Array(40_000).fill(0x51))]]);
    const image = new RecordingStorage(start.get(IMAGE)!.fork(), log, IMAGE);
    await image.truncate(0);
    await createOn({ image }, 256 * K, {}, qcow);
    const created = log.mark('created');
    const { violations } = await verifyCrashes(
      log,
      start,
      {
        open: (state) => openCrashed(state.files, undefined, { driver: qcow }),
        history: new GuestHistory(log, new Uint8Array(256 * K)),
        mustOpen: (state) => state.time >= created,
      },
      { seed: 1, samples: sampleCount(150), torn: true },
    );
    expect(violations).toEqual([]);
  });

  it('an image emptied: each cluster is there or is not', async () => {
    const image = new PagedStorage(IMAGE);
    await createOn({ image }, 6 * K * K, {}, qcow);
    const guest = await openOn({ image }, { writable: true, driver: qcow });
    const spots = [0, 2 * K * K, 4 * K * K];
    for (const at of spots) await guest.write(at, pattern(at, 8 * K, 1));
    await guest.close();
    const log = new CrashLog();
    const start = new Map([[IMAGE, image.fork()]]);
    const node = await openOn(
      { image: new RecordingStorage(image, log, IMAGE) },
      { writable: true, driver: qcow },
    );
    await node.format.makeEmpty!();
    const done = log.mark('emptied');
    await node.close();
    const { violations } = await verifyCrashes(
      log,
      start,
      {
        async open(state): Promise<OpenedImage> {
          const opened = await openCrashed(state.files, undefined, { driver: qcow });
          for (const at of spots) {
            const found = await opened.read(at, 8 * K);
            const empty = found.every((byte) => byte === 0);
            const full = Buffer.compare(found, pattern(at, 8 * K, 1)) === 0;
            if (!empty && (!full || state.time >= done)) throw new Error(`at ${at}: neither old nor empty`);
          }
          return opened;
        },
      },
      { seed: 1, samples: sampleCount(100), torn: true },
    );
    expect(violations).toEqual([]);
  });
});
