/**
 * The crash suite tested on a toy image whose rules are plain: it must accept the right order and catch each wrong one.
 * The toy: sector 0 holds the number of the sector with the content and a copy of its first byte; the content is one sector.
 */
import { describe, expect, it } from 'vitest';
import type { Storage } from '../../src/engine/storage/storage.js';
import { type Expectation, GuestHistory, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { CrashLog, RecordingStorage } from './recorder.js';
import { prefixStates, sampledStates } from './replay.js';

const sector = (value: number): Uint8Array => new Uint8Array(512).fill(value);

function header(pointer: number): Uint8Array {
  const bytes = new Uint8Array(512);
  bytes[0] = pointer;
  return bytes;
}

function toy(): { start: PagedStorage; log: CrashLog; file: Storage; history: GuestHistory } {
  const start = new PagedStorage('toy', Buffer.concat([header(1), sector(0xaa)]));
  const log = new CrashLog();
  return {
    start: start.fork(),
    log,
    file: new RecordingStorage(start, log),
    history: new GuestHistory(log, sector(0xaa)),
  };
}

const expectation = (history: GuestHistory, name = 'toy'): Expectation => ({
  history,
  async open(state) {
    const file = state.files.get(name)!;
    const head = new Uint8Array(512);
    await file.read(0, head);
    if (head[0] === 0) throw new Error('no pointer');
    return {
      size: 512,
      async read(_at, length) {
        const into = new Uint8Array(length);
        await file.read(head[0]! * 512, into);
        return into;
      },
      async close() {},
    };
  },
});

async function verdict(operation: (file: Storage, history: GuestHistory) => Promise<void>, torn = false) {
  const { start, log, file, history } = toy();
  await operation(file, history);
  return verifyCrashes(log, new Map([['toy', start]]), expectation(history), {
    seed: 1,
    samples: sampleCount(200),
    torn,
  });
}

describe('the crash machinery', () => {
  it('accepts data, flush, link, flush', async () => {
    const { violations, states } = await verdict(async (file, history) => {
      await history.write(0, sector(0xbb), async () => {
        await file.write(1024, sector(0xbb));
        await file.flush();
        await file.write(0, header(2));
      });
      await history.flush(() => file.flush());
    }, true);
    expect(violations).toEqual([]);
    expect(states).toBeGreaterThan(200);
  });

  it('catches a link that is written before its data', async () => {
    const { violations } = await verdict(async (file, history) => {
      await history.write(0, sector(0xbb), async () => {
        await file.write(0, header(2));
        await file.write(1024, sector(0xbb));
      });
      await history.flush(() => file.flush());
    });
    expect(violations[0]).toMatch(/neither old/);
  });

  it('catches a missing flush between data and link, which no prefix shows', async () => {
    const { start, log, file, history } = toy();
    await history.write(0, sector(0xbb), async () => {
      await file.write(1024, sector(0xbb));
      await file.write(0, header(2));
    });
    await history.flush(() => file.flush());
    const snapshot = new Map([['toy', start]]);
    const none = await verifyCrashes(log, snapshot, expectation(history), { seed: 1, samples: 0 });
    expect(none.violations).toEqual([]);
    const some = await verifyCrashes(log, snapshot, expectation(history), { seed: 1, samples: 50 });
    expect(some.violations[0]).toMatch(/neither old/);
  });

  it('catches a flush that is reported and was not done', async () => {
    const { violations } = await verdict(async (file, history) => {
      await history.write(0, sector(0xbb), () => file.write(512, sector(0xbb)));
      await history.flush(async () => {});
      await file.write(4096, sector(1));
      await file.flush();
    });
    expect(violations[0]).toMatch(/neither flushed/);
  });

  it('catches a flush of the wrong file', async () => {
    const log = new CrashLog();
    const start = new Map([
      ['toy', new PagedStorage('toy', Buffer.concat([header(1), sector(0xaa)]))],
      ['other', new PagedStorage('other')],
    ]);
    const [toyFile, other] = [...start].map(([, storage]) => new RecordingStorage(storage.fork(), log));
    const history = new GuestHistory(log, sector(0xaa));
    await history.write(0, sector(0xbb), async () => {
      await toyFile!.write(1024, sector(0xbb));
      await other!.flush();
      await toyFile!.write(0, header(2));
    });
    await history.flush(() => toyFile!.flush());
    const { violations } = await verifyCrashes(log, start, expectation(history), { seed: 1, samples: 50 });
    expect(violations[0]).toMatch(/neither old/);
  });

  it('catches a write that a flush does not cover because it was still under way', async () => {
    const { violations } = await verdict(async (file, history) => {
      await history.write(0, sector(0xbb), async () => {
        const data = file.write(1024, sector(0xbb));
        await Promise.all([data, file.flush()]);
        await file.write(0, header(2));
      });
      await history.flush(() => file.flush());
    });
    expect(violations[0]).toMatch(/neither old/);
  });

  it('tears writes into sectors where asked', async () => {
    const log = new CrashLog();
    const file = new RecordingStorage(new PagedStorage('torn'), log);
    await file.write(0, new Uint8Array(1024).fill(7));
    const seen = new Set<string>();
    const start = new Map([['torn', new PagedStorage('torn')]]);
    for (const state of sampledStates(log, start, { seed: 3, samples: 200, torn: true })) {
      const both = new Uint8Array(1024);
      state.files.get('torn')!.get(0, both);
      seen.add(`${both[0]}${both[512]}`);
    }
    expect([...seen].sort()).toEqual(['00', '07', '70', '77']);
  });

  it('keeps truncates in order and flushed requests in place', async () => {
    const log = new CrashLog();
    const file = new RecordingStorage(new PagedStorage('t'), log);
    await file.truncate(1000);
    await file.flush();
    await file.truncate(2000);
    await file.truncate(3000);
    const sizes = new Set<number>();
    const start = new Map([['t', new PagedStorage('t')]]);
    for (const state of sampledStates(log, start, { seed: 5, samples: 300 })) {
      if (state.time === log.time) sizes.add(state.files.get('t')!.size);
    }
    expect([...sizes].sort()).toEqual([1000, 2000, 3000]);
  });

  it('yields each prefix once and leaves the start as it was', async () => {
    const log = new CrashLog();
    const start = new PagedStorage('p', sector(1));
    const file = new RecordingStorage(start.fork(), log);
    await file.write(0, sector(2));
    await file.zero({ at: 0, length: 100 });
    await file.flush();
    await file.discard({ at: 0, length: 512 });
    const firsts = [...prefixStates(log, new Map([['p', start]]))].map(({ files }) => {
      const bytes = files.get('p')!.bytes();
      files.get('p')!.put(0, sector(9));
      return [bytes[0], bytes[511]];
    });
    expect(firsts).toEqual([
      [1, 1],
      [2, 2],
      [0, 2],
      [0, 0],
    ]);
    expect(start.bytes()[0]).toBe(1);
  });
});
