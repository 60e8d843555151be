import { describe, expect, it } from 'vitest';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { NullStorage } from '../../src/engine/storage/null.js';

const PAGE = 65536;
const TB = 2 ** 40;

function pattern(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + seed) & 0xff || 1);
}

async function read(
  storage: { read(at: number, into: Uint8Array): Promise<void> },
  at: number,
  length: number,
) {
  const into = new Uint8Array(length).fill(0xee);
  await storage.read(at, into);
  return into;
}

describe('MemoryStorage', () => {
  it('holds the bytes it was made from, and more that are written', async () => {
    const start = pattern(100);
    const memory = new MemoryStorage(start);
    expect(memory.size).toBe(100);
    expect(memory.bytes()).toEqual(start);
    await memory.write(90, pattern(PAGE * 2, 5));
    expect(memory.size).toBe(90 + PAGE * 2);
    expect(await read(memory, 90, PAGE * 2)).toEqual(pattern(PAGE * 2, 5));
    expect(await read(memory, 0, 90)).toEqual(start.subarray(0, 90));
  });

  it('reads zeros past its end', async () => {
    const memory = new MemoryStorage(pattern(10));
    expect(await read(memory, 8, 6)).toEqual(Uint8Array.of(...pattern(10).subarray(8), 0, 0, 0, 0));
    expect(await read(memory, 5 * TB, 3)).toEqual(new Uint8Array(3));
  });

  it('has huge sizes for nothing', async () => {
    const memory = new MemoryStorage();
    await memory.truncate(8000 * TB);
    await memory.write(7000 * TB, pattern(3));
    expect(memory.size).toBe(8000 * TB);
    expect(await memory.allocated()).toBe(PAGE);
    expect(memory.extent({ at: 0, length: 8000 * TB })).toEqual({ data: false, length: 7000 * TB });
    expect(memory.extent({ at: 7000 * TB, length: 10 * PAGE })).toEqual({ data: true, length: PAGE });
    expect(memory.extent({ at: 7000 * TB + PAGE, length: 1100 * TB })).toEqual({
      data: false,
      length: 1100 * TB,
    });
    await memory.discard({ at: 0, length: 8000 * TB });
    expect(await memory.allocated()).toBe(0);
  });

  it('ends data at its size, and a hole at the end of the question', async () => {
    const memory = new MemoryStorage(pattern(PAGE + 10));
    expect(memory.extent({ at: 5, length: 10 * PAGE })).toEqual({ data: true, length: PAGE + 5 });
    expect(memory.extent({ at: PAGE + 10, length: 77 })).toEqual({ data: false, length: 77 });
  });

  it('zeroes and discards parts of pages, keeps what is around them, and drops whole pages', async () => {
    const memory = new MemoryStorage(pattern(4 * PAGE));
    await memory.zero({ at: PAGE - 10, length: PAGE + 20 });
    const expected = pattern(4 * PAGE);
    expected.fill(0, PAGE - 10, 2 * PAGE + 10);
    expect(memory.bytes()).toEqual(expected);
    expect(await memory.allocated()).toBe(3 * PAGE);
    await memory.zero({ at: 4 * PAGE, length: 50 });
    expect(memory.size).toBe(4 * PAGE + 50);
  });

  it('does not bring cut bytes back when it grows again', async () => {
    const memory = new MemoryStorage(pattern(100));
    await memory.truncate(40);
    await memory.truncate(100);
    expect(await read(memory, 40, 60)).toEqual(new Uint8Array(60));
    await memory.truncate(0);
    expect(await memory.allocated()).toBe(0);
  });

  it('fails as a full disk beyond its capacity, and as a file opened for reading', async () => {
    const full = new MemoryStorage(0, { capacity: 2 * PAGE });
    await full.write(0, pattern(2 * PAGE));
    await expect(full.write(5 * PAGE, pattern(1))).rejects.toMatchObject({
      kind: 'no-space',
      message: 'No space left on device',
    });
    const fixed = new MemoryStorage(pattern(5), { writable: false, filename: 'f' });
    await expect(fixed.write(0, pattern(1))).rejects.toMatchObject({
      kind: 'read-only',
      context: { path: 'f' },
    });
    await expect(fixed.truncate(1)).rejects.toMatchObject({ kind: 'read-only' });
  });

  it('refuses what is no range', async () => {
    const memory = new MemoryStorage();
    for (const at of [-1, 0.5, Number.NaN, 2 ** 53, Number.MAX_SAFE_INTEGER]) {
      await expect(memory.read(at, new Uint8Array(4))).rejects.toMatchObject({ kind: 'io' });
      await expect(memory.write(at, new Uint8Array(4))).rejects.toMatchObject({ kind: 'io' });
    }
    await expect(memory.truncate(-5)).rejects.toMatchObject({ kind: 'io' });
  });

  it('clones: a copy that later writes do not reach', async () => {
    const memory = new MemoryStorage(pattern(10));
    const copy = memory.clone();
    await memory.write(0, new Uint8Array(10));
    expect(copy.bytes()).toEqual(pattern(10));
  });
});

describe('NullStorage', () => {
  it('takes writes within its size and reads as zeros', async () => {
    const nothing = new NullStorage({ size: 1000 });
    await nothing.write(0, pattern(1000));
    expect(await read(nothing, 0, 1000)).toEqual(new Uint8Array(1000));
    await expect(nothing.write(999, pattern(2))).rejects.toMatchObject({ kind: 'no-space' });
    expect(new NullStorage().size).toBe(2 ** 30);
  });

  it('is a hole with read-zeroes, data without', () => {
    expect(new NullStorage({ readZeroes: true }).extent({ at: 0, length: 9 })).toEqual({
      data: false,
      length: 9,
    });
    expect(new NullStorage().extent({ at: 0, length: 9 })).toEqual({ data: true, length: 9 });
  });

  it('takes its time with a latency', async () => {
    const slow = new NullStorage({ latencyNs: 20e6 });
    const start = performance.now();
    await slow.read(0, new Uint8Array(1));
    expect(performance.now() - start).toBeGreaterThan(15);
  });
});
