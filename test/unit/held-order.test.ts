/** Readers and writers of one image at the same time: a read never sees what came to be where its bytes were before. */
import { expect, it } from 'vitest';
import type { Extent, FormatDriver, FormatNode, WriteTarget } from '../../src/engine/node/driver.js';
import { ImageNode } from '../../src/engine/node/image.js';
import { RangeLock } from '../../src/engine/node/range-lock.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import type { Range, Storage } from '../../src/engine/storage/storage.js';

const UNIT = 4096;

/** A format that moves a unit each time it is written, and gives its former place to the next one at once. */
class Moving implements FormatNode {
  readonly size = 8 * UNIT;
  readonly unit = UNIT;
  readonly children = new Map<string, Storage>();
  readonly startsAsZero = true;
  readonly places: number[] = [];
  readonly free: number[];
  readonly #file: Storage;

  constructor(file: Storage) {
    this.#file = file;
    for (let n = 0; n < 8; n++) this.places.push(n * UNIT);
    this.free = [8 * UNIT];
  }

  map({ at, length }: Range): Extent {
    const inside = at % UNIT;
    const place = this.places[(at - inside) / UNIT]!;
    return { kind: 'data', storage: this.#file, at: place + inside, length: Math.min(length, UNIT - inside) };
  }

  prepareWrite({ at, length }: Range): WriteTarget {
    const inside = at % UNIT;
    const index = (at - inside) / UNIT;
    const place = this.free.shift() ?? 9 * UNIT + index * UNIT;
    const count = Math.min(length, UNIT - inside);
    return {
      storage: this.#file,
      at: place + inside,
      length: count,
      fillBefore: inside,
      fillAfter: UNIT - inside - count,
      commit: () => {
        this.free.unshift(this.places[index]!);
        this.places[index] = place;
      },
    };
  }

  async close(): Promise<void> {}

  info() {
    return {};
  }
}

const driver = { name: 'moving' } as FormatDriver;

/** Bytes whose reads wait until they are let through. */
class Slow extends MemoryStorage {
  gate: Promise<void> = Promise.resolve();
  override async read(at: number, into: Uint8Array): Promise<void> {
    await this.gate;
    await super.read(at, into);
  }
}

function image(): { node: ImageNode; file: Slow } {
  const file = new Slow(16 * UNIT);
  const format = new Moving(file);
  const node = new ImageNode({
    filename: 'moving',
    path: undefined,
    driver,
    format,
    file,
    backing: undefined,
    writable: true,
  });
  return { node, file };
}

const filled = (byte: number): Uint8Array => new Uint8Array(UNIT).fill(byte);

it('a read gets its bytes although the unit is moved and its place is given to another', async () => {
  const { node, file } = image();
  await node.write(0, filled(1));
  let open!: () => void;
  file.gate = new Promise((resolve) => {
    open = resolve;
  });
  const into = new Uint8Array(UNIT);
  const reading = node.read(0, into);
  // Moves unit 0, and then puts unit 1 where unit 0 was.
  const writing = node.write(0, filled(2)).then(() => node.write(UNIT, filled(3)));
  await new Promise((resolve) => setImmediate(resolve));
  open();
  await Promise.all([reading, writing]);
  expect(new Set(into)).toEqual(new Set([1]));
  await node.read(0, into);
  expect(new Set(into)).toEqual(new Set([2]));
});

it('views of one image are ordered among each other', async () => {
  const { node, file } = image();
  await node.write(0, filled(1));
  const view = node.view({ close: async () => {} });
  const other = node.view({ close: async () => {} });
  let open!: () => void;
  file.gate = new Promise((resolve) => {
    open = resolve;
  });
  const into = new Uint8Array(UNIT);
  const reading = view.read(0, into);
  const writing = other.write(0, filled(2)).then(() => other.write(UNIT, filled(3)));
  await new Promise((resolve) => setImmediate(resolve));
  open();
  await Promise.all([reading, writing]);
  expect(new Set(into)).toEqual(new Set([1]));
});

it('partial writes fill the rest of a unit without waiting for themselves', async () => {
  const { node } = image();
  await node.write(0, filled(1));
  await node.write(100, new Uint8Array(10).fill(9));
  const into = new Uint8Array(UNIT);
  await node.read(0, into);
  expect([into[99], into[100], into[109], into[110]]).toEqual([1, 9, 9, 1]);
});

it('many readers and writers at once see whole units', async () => {
  const { node } = image();
  for (let n = 0; n < 8; n++) await node.write(n * UNIT, filled(10 + n));
  const work: Promise<void>[] = [];
  let torn = 0;
  for (let n = 0; n < 400; n++) {
    const unit = (n * 5) % 8;
    if (n % 3 === 0) {
      work.push(node.write(unit * UNIT, filled(10 + unit + 8 * (n % 7))));
    } else {
      const into = new Uint8Array(UNIT);
      work.push(
        node.read(unit * UNIT, into).then(() => {
          if (into.some((byte) => byte !== into[0]) || (into[0]! - 10) % 8 !== unit) torn++;
        }),
      );
    }
  }
  await Promise.all(work);
  expect(torn).toBe(0);
});

it('a writer that waits is not passed by for ever', async () => {
  const locks = new RangeLock();
  const first = locks.tryAcquireShared(0, 10)!;
  const writer = locks.acquire(5, 6);
  expect(locks.tryAcquireShared(0, 10)).toBeUndefined();
  expect(locks.tryAcquireShared(6, 10)).toBeDefined();
  const late = locks.acquireShared(0, 6);
  first();
  const release = await writer;
  release();
  (await late)();
});

it('zeros are found on the way where that is asked for', async () => {
  const { node } = image();
  node.detectZeroes = 'on';
  await node.write(0, filled(1));
  await node.write(0, new Uint8Array(UNIT));
  const into = filled(7);
  await node.read(0, into);
  expect(new Set(into)).toEqual(new Set([0]));
});
