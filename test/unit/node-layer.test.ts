import { describe, expect, it } from 'vitest';
import { raw } from '../../src/engine/formats/raw/index.js';
import type { Extent, FormatNode, WriteTarget } from '../../src/engine/node/driver.js';
import { fromJson, fromOptionString, protocolOf } from '../../src/engine/node/flat-options.js';
import { checkAllowed, relativeTo } from '../../src/engine/node/gate.js';
import { ImageNode } from '../../src/engine/node/image.js';
import { RangeLock } from '../../src/engine/node/range-lock.js';
import { copy, imageSource } from '../../src/engine/operations/copy.js';
import { zeroRuns } from '../../src/engine/operations/zeros.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { parseSize, splitOptions } from '../../src/protocol/options.js';

const UNIT = 4096;

/** A toy format: units of 4 KiB, allocated in the order in which they are first written. */
class ToyNode implements FormatNode {
  readonly unit = UNIT;
  readonly children = new Map();
  readonly startsAsZero = true;
  readonly table = new Map<number, number>();
  readonly file = new MemoryStorage();
  next = 0;
  constructor(readonly size: number) {}
  map({ at, length }: { at: number; length: number }): Extent {
    const inside = at % UNIT;
    const take = Math.min(length, UNIT - inside);
    const host = this.table.get(at - inside);
    if (host === undefined) return { kind: 'backing', length: take };
    return { kind: 'data', length: take, storage: this.file, at: host + inside };
  }
  prepareWrite({ at, length }: { at: number; length: number }): WriteTarget {
    const inside = at % UNIT;
    const take = Math.min(length, UNIT - inside);
    const host = this.table.get(at - inside);
    if (host !== undefined) {
      return { storage: this.file, at: host + inside, length: take, fillBefore: 0, fillAfter: 0 };
    }
    const place = this.next;
    this.next += UNIT;
    return {
      storage: this.file,
      at: place + inside,
      length: take,
      fillBefore: inside,
      fillAfter: UNIT - inside - take,
      commit: () => {
        this.table.set(at - inside, place);
      },
    };
  }
  async close() {}
  info() {
    return {};
  }
}

function node(format: FormatNode, backing?: ImageNode, writable = true): ImageNode {
  return new ImageNode({
    filename: 'toy',
    path: undefined,
    driver: raw,
    format,
    file: new MemoryStorage(),
    backing,
    writable,
  });
}

const quiet = {
  cwd: '/',
  policy: {},
  signal: new AbortController().signal,
  progress: () => {},
  output: () => {},
  pace: () => undefined,
  setRate: () => {},
};

function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

describe('the access path', () => {
  it('gives what a plain array gives, for random reads and writes over a shorter backing file', async () => {
    const size = 40 * UNIT + 512;
    const below = new ToyNode(25 * UNIT);
    const base = node(below);
    const model = Buffer.alloc(size);
    const stamp = Buffer.alloc(25 * UNIT);
    for (let i = 0; i < stamp.byteLength; i++) stamp[i] = (i >> 9) + 1;
    await base.write(0, stamp.subarray(0, 20 * UNIT));
    stamp.copy(model, 0, 0, 20 * UNIT);
    const top = node(new ToyNode(size), base);
    const next = random(7);
    for (let round = 0; round < 400; round++) {
      const at = Math.floor(next() * (size - 1));
      const length = 1 + Math.floor(next() * Math.min(size - at - 1, 3 * UNIT));
      if (round % 3 === 0) {
        const bytes = Buffer.alloc(length, 1 + (round % 255));
        bytes.copy(model, at);
        await top.write(at, bytes);
      } else if (round % 7 === 0) {
        model.fill(0, at, at + length);
        await top.zero({ at, length });
      } else {
        const into = Buffer.alloc(length, 0xee);
        await top.read(at, into);
        expect(into.equals(model.subarray(at, at + length))).toBe(true);
      }
    }
    const whole = Buffer.alloc(size);
    await top.read(0, whole);
    expect(whole.equals(model)).toBe(true);
    const untouched = Buffer.alloc(20 * UNIT);
    await base.read(0, untouched);
    expect(untouched.equals(stamp.subarray(0, 20 * UNIT))).toBe(true);
  });

  it('queues concurrent writers to one unit, so that neither is lost', async () => {
    const toy = new ToyNode(UNIT);
    const image = node(toy);
    await Promise.all([0, 1, 2, 3].map((i) => image.write(i * 1024, Buffer.alloc(1024, i + 1))));
    const all = Buffer.alloc(UNIT);
    await image.read(0, all);
    for (let i = 0; i < 4; i++) expect(all[i * 1024 + 500]).toBe(i + 1);
    expect(toy.next).toBe(UNIT);
  });

  it('refuses what is outside, and writes to read-only nodes', async () => {
    const image = node(new ToyNode(UNIT), undefined, false);
    await expect(image.read(UNIT - 1, Buffer.alloc(2))).rejects.toMatchObject({ kind: 'invalid' });
    await expect(image.write(0, Buffer.alloc(1))).rejects.toMatchObject({ kind: 'read-only' });
    expect(() => image.status({ at: -1, length: 1 })).toThrow();
  });

  it('says at which depth a run is, and that a short backing file ends in zeros there', async () => {
    const base = node(new ToyNode(2 * UNIT));
    await base.write(0, Buffer.alloc(UNIT, 1));
    const top = node(new ToyNode(4 * UNIT), base);
    expect(await top.status({ at: 0, length: 4 * UNIT })).toMatchObject({
      kind: 'data',
      depth: 1,
      length: UNIT,
    });
    expect(await top.status({ at: UNIT, length: 3 * UNIT })).toMatchObject({ kind: 'none', depth: 1 });
    expect(await top.status({ at: 2 * UNIT, length: 2 * UNIT })).toMatchObject({ kind: 'zero', depth: 1 });
  });
});

describe('the copy loop', () => {
  it('copies chains with holes into a new image and counts data and zeros', async () => {
    const size = 9 * 1024 * 1024 + 512;
    const source = node(new ToyNode(size));
    const model = Buffer.alloc(size);
    const next = random(3);
    for (let i = 0; i < 200; i++) {
      const at = Math.floor(next() * (size - 9000));
      const bytes = Buffer.alloc(1 + Math.floor(next() * 9000), 1 + (i % 250));
      bytes.copy(model, at);
      await source.write(at, bytes);
    }
    for (const parallel of [1, 8]) {
      for (const outOfOrder of [false, true]) {
        const toy = new ToyNode(size);
        const target = node(toy);
        const totals = await copy(
          imageSource(source, false, 0),
          target,
          { parallel, outOfOrder, sparse: 4096, targetIsZero: true, compress: false },
          quiet,
        );
        const back = Buffer.alloc(size);
        await target.read(0, back);
        expect(back.equals(model)).toBe(true);
        expect(totals.written + totals.zeros).toBe(size);
        expect(toy.next).toBeLessThan(size / 2);
      }
    }
  });

  it('ends with the first error and with cancellation', async () => {
    const source = node(new ToyNode(UNIT * 10));
    await source.write(0, Buffer.alloc(UNIT * 10, 1));
    const failing = new ToyNode(UNIT * 10);
    failing.prepareWrite = () => {
      throw new Error('no room');
    };
    const options = { parallel: 4, outOfOrder: false, sparse: 4096, targetIsZero: true, compress: false };
    await expect(copy(imageSource(source, false, 0), node(failing), options, quiet)).rejects.toThrow(
      'no room',
    );
    const aborted = new AbortController();
    aborted.abort();
    await expect(
      copy(imageSource(source, false, 0), node(new ToyNode(UNIT * 10)), options, {
        ...quiet,
        signal: aborted.signal,
      }),
    ).rejects.toMatchObject({ kind: 'cancelled' });
  });

  it('finds zero runs at block boundaries of the guest, and no shorter than asked', () => {
    const buffer = Buffer.alloc(8192, 0);
    buffer[100] = 1;
    expect(zeroRuns(buffer, 8192, 512, 1024, 1024)).toEqual([
      { start: 0, end: 512, zero: false },
      { start: 512, end: 8192, zero: true },
    ]);
    buffer[4000] = 1;
    expect(zeroRuns(buffer, 8192, 0, 1024, 4096).map((run) => run.zero)).toEqual([false, true]);
  });
});

describe('range locks', () => {
  it('let disjoint ranges pass and queue overlapping ones', async () => {
    const lock = new RangeLock();
    const first = await lock.acquire(0, 10);
    expect(lock.tryAcquire(5, 15)).toBeUndefined();
    const other = lock.tryAcquire(10, 20)!;
    const order: string[] = [];
    const waiting = lock.acquire(5, 15).then((release) => {
      order.push('third');
      release();
    });
    order.push('first');
    first();
    other();
    await waiting;
    expect(order).toEqual(['first', 'third']);
  });
});

describe('names and options', () => {
  it('flattens json: with single quotes and nesting', () => {
    const flat = fromJson(`{'driver':'qcow2','file':{'driver':'file',"filename":"a'b\\"c"},'backing':null}`);
    expect(Object.fromEntries(flat.entries())).toEqual({
      driver: 'qcow2',
      'file.driver': 'file',
      'file.filename': 'a\'b"c',
      backing: null,
    });
    expect(() => fromJson('{')).toThrow(/Could not parse the JSON options/);
    expect(() => fromJson('[1]')).toThrow(/Invalid JSON object/);
    expect(() => fromJson(`${'{"a":'.repeat(100)}1${'}'.repeat(100)}`)).toThrow(/too deeply/);
  });

  it('splits option strings with doubled commas', () => {
    expect(splitOptions('driver=raw,file.filename=a,,b,force-share')).toEqual([
      ['driver', 'raw'],
      ['file.filename', 'a,b'],
      ['force-share', 'on'],
    ]);
    expect(splitOptions('secret,id=x', 'qom-type')).toEqual([
      ['qom-type', 'secret'],
      ['id', 'x'],
    ]);
    expect(fromOptionString('a=1').take('a')).toBe('1');
  });

  it('reads sizes as QEMU does', () => {
    expect(parseSize('1.5G')).toBe(1.5 * 2 ** 30);
    expect(parseSize('0x200')).toBe(512);
    expect(parseSize('64k')).toBe(65536);
    expect(parseSize('12')).toBe(12);
    for (const wrong of ['', 'k', '1.5', '1x', '0x10k', '1 G', '-1k'])
      expect(parseSize(wrong)).toBeUndefined();
    expect(parseSize('99999P')).toBeNaN();
    expect(parseSize('-1')).toBeNaN();
  });

  it('knows protocols from paths', () => {
    expect(protocolOf('nbd://host')).toBe('nbd');
    expect(protocolOf('/a:b')).toBeUndefined();
    expect(protocolOf('./a:b')).toBeUndefined();
    expect(protocolOf('file:x')).toBe('file');
  });

  it('resolves names in images against the image, and holds roots', () => {
    expect(relativeTo('/images/a.qcow2', 'b.raw')).toBe('/images/b.raw');
    expect(relativeTo('a.qcow2', 'b.raw')).toBe('b.raw');
    expect(relativeTo('x/a.qcow2', '/b')).toBe('/b');
    expect(() => checkAllowed('/etc/passwd', '/etc/passwd', 'backing', { roots: ['/images'] })).toThrow(
      /outside/,
    );
    expect(() => checkAllowed('/images/../etc/passwd', 'x', 'caller', { roots: ['/usr'] })).toThrow(
      /outside/,
    );
    expect(() => checkAllowed('/usr/x', 'x', 'caller', { roots: ['/usr'] })).not.toThrow();
  });
});
