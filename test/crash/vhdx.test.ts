/** VHDX: whatever moment the power fails at, the log brings the image to what it was before a write or after it. */
import { describe, expect, it } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { Headers } from '../../src/engine/formats/vhdx/header.js';
import { vhdx } from '../../src/engine/formats/vhdx/index.js';
import { MIB } from '../../src/engine/formats/vhdx/layout.js';
import { encodeEntry } from '../../src/engine/formats/vhdx/log.js';
import type { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { GuestHistory, type OpenedImage, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { createOn, IMAGE, openOn } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import type { CrashState, Snapshot } from './replay.js';
import { Guest } from './scenario.js';

const SIZE = 3 * MIB + 512;
const K = 1024;

/** As a program that only reads does; where the log must be replayed first, as one that writes. */
async function openState(state: CrashState): Promise<OpenedImage> {
  const image = state.files.get(IMAGE)!;
  const node = await openOn({ image }, { writable: false, driver: vhdx }).catch((error: unknown) => {
    if (!(error instanceof ImageError) || error.kind !== 'read-only') throw error;
    return openOn({ image }, { writable: true, driver: vhdx });
  });
  return {
    size: node.size,
    async read(at, length) {
      const into = new Uint8Array(length);
      await node.read(at, into);
      return into;
    },
    async check() {
      const lines: string[] = [];
      const repair = { leaks: false, errors: false };
      const result = await node.format.checker!.check({ repair, report: (line) => lines.push(line) });
      return { result, lines };
    },
    close: () => node.close(),
  };
}

async function content(image: ImageNode): Promise<Uint8Array> {
  const bytes = new Uint8Array(image.size);
  await image.read(0, bytes);
  return bytes;
}

interface Scenario {
  readonly options?: OptionValues;
  before?(guest: Guest): Promise<void>;
  between?(image: PagedStorage): Promise<void>;
  act(guest: Guest): Promise<void>;
}

async function survives(scenario: Scenario): Promise<number> {
  const image = new PagedStorage(IMAGE);
  await createOn({ image }, SIZE, { block_size: MIB, ...scenario.options }, vhdx);
  if (scenario.before !== undefined) {
    const node = await openOn({ image }, { writable: true, driver: vhdx });
    await scenario.before(new Guest(node, new GuestHistory(new CrashLog(), await content(node))));
    await node.close();
  }
  await scenario.between?.(image);
  const log = new CrashLog();
  const start = new Map([[IMAGE, image.fork()]]);
  const recorded = { image: new RecordingStorage(image, log, IMAGE) };
  const node = await openOn(recorded, { writable: true, driver: vhdx });
  const history = new GuestHistory(log, await content(node));
  const guest = new Guest(node, history);
  await scenario.act(guest);
  await guest.flush();
  await history.flush(() => node.close());
  return verified(log, start, history);
}

async function verified(log: CrashLog, start: Snapshot, history: GuestHistory, from = 0): Promise<number> {
  const { states, violations } = await verifyCrashes(
    log,
    start,
    { open: openState, history, mustOpen: (state) => state.time >= from },
    { seed: 1, samples: sampleCount(25), torn: true },
  );
  expect(violations).toEqual([]);
  return states;
}

describe('VHDX survives crashes', () => {
  it('new blocks', async () => {
    const states = await survives({
      async act(guest) {
        await guest.write(100, 3000, 1);
        await guest.write(2 * MIB, 4 * K, 2);
        await guest.flush();
        await guest.write(MIB - 512, 1024, 3);
        await guest.write(3 * MIB, 512, 4);
      },
    });
    expect(states).toBeGreaterThan(40);
  });

  it('several flushes: the halves of the log take turns', async () => {
    await survives({
      async act(guest) {
        for (let block = 0; block < 3; block++) {
          await guest.write(block * MIB + 700, 512, block);
          await guest.flush();
        }
      },
    });
  });

  it('writes at the same time, in one block and in several', async () => {
    await survives({
      async act(guest) {
        await Promise.all([
          guest.write(0, 512, 1),
          guest.write(8 * K, 512, 2),
          guest.write(MIB + 512, 512, 3),
          guest.write(2 * MIB - 512, 2048, 4),
        ]);
      },
    });
  });

  it('blocks overwritten and zeroed in place', async () => {
    await survives({
      before: (guest) => guest.write(MIB, 16 * K, 1),
      async act(guest) {
        await guest.write(MIB + 512, 2048, 2);
        await guest.flush();
        await guest.zero(MIB + 4 * K, 4 * K);
        await guest.zero(2 * MIB, 8 * K, true);
        await guest.write(2 * MIB + 1024, 512, 3);
      },
    });
  });

  it('a fixed image', async () => {
    await survives({
      options: { subformat: 'fixed' },
      async act(guest) {
        await guest.write(0, 2048, 1);
        await guest.write(3 * MIB, 512, 2);
      },
    });
  });

  it('a log that has to be replayed, and new blocks after', async () => {
    await survives({
      before: (guest) => guest.write(0, 4 * K, 1),
      async between(image) {
        const bat = new Uint8Array(4096);
        image.get(2 * MIB, bat);
        const logGuid = new Uint8Array(16).fill(5);
        const headers = await Headers.read(image);
        const entry = { at: 0, sequence: 1n, logGuid, fileSize: image.size };
        image.put(MIB, encodeEntry(entry, [{ at: 2 * MIB, data: bat }]));
        await headers.update({ logGuid });
        image.clear(2 * MIB, 4096);
      },
      async act(guest) {
        await guest.write(MIB, 512, 2);
        await guest.flush();
        await guest.write(2 * MIB, 512, 3);
      },
    });
  });

  it.each([{}, { subformat: 'fixed' }, { block_state_zero: false }])('creation, %j', async (options) => {
    const log = new CrashLog();
    const start = new Map([[IMAGE, new PagedStorage(IMAGE)]]);
    const image = new RecordingStorage(start.get(IMAGE)!.fork(), log, IMAGE);
    await createOn({ image }, MIB, { block_size: MIB, ...options }, vhdx);
    const created = log.mark('created');
    await verified(log, start, new GuestHistory(log, new Uint8Array(MIB)), created);
  });
});
