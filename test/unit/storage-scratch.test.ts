import { describe, expect, it } from 'vitest';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { ScratchMemory, ScratchStorage } from '../../src/engine/storage/scratch.js';
import { Spans } from '../../src/engine/storage/spans.js';
import { generator } from '../support/stamped.js';

const KiB = 1024;
const SPACE = 96 * KiB;

function filled(bytes: number, value: number): Uint8Array {
  return new Uint8Array(bytes).fill(value);
}

describe('a set of runs', () => {
  it('is what a list of all its members is', () => {
    const random = generator(7);
    const spans = new Spans();
    const members = new Array<boolean>(64).fill(false);
    for (let step = 0; step < 400; step++) {
      const from = Math.floor(random() * 64);
      const to = from + Math.floor(random() * (65 - from));
      const adds = random() < 0.5;
      if (adds) spans.add(from, to);
      else spans.remove(from, to);
      members.fill(adds, from, to);
      for (let at = 0; at < 64; at++) {
        const { inside, end } = spans.run(at);
        expect(inside).toBe(members[at]);
        const change = members.findIndex((each, index) => index > at && each !== inside);
        expect(Math.min(end, 64)).toBe(change < 0 ? 64 : change);
      }
    }
  });
});

describe('changes that stay in memory', () => {
  it('read as they would in the storage itself, which stays as it was', async () => {
    const random = generator(11);
    const upTo = (most: number) => Math.floor(random() * most);
    for (let round = 0; round < 20; round++) {
      const below = new MemoryStorage(filled(upTo(SPACE), 0xbb));
      const before = below.bytes();
      const model = below.clone();
      const scratch = new ScratchStorage(below, new ScratchMemory(1024 * KiB));
      for (let step = 0; step < 60; step++) {
        const at = upTo(SPACE);
        const length = 1 + upTo(random() < 0.5 ? 600 : 20 * KiB);
        const bytes = filled(length, 1 + upTo(250));
        const choice = random();
        for (const storage of [model, scratch]) {
          if (choice < 0.5) await storage.write(at, bytes);
          else if (choice < 0.7) await storage.zero({ at, length }, { unmap: choice < 0.6 });
          else if (choice < 0.85) await storage.discard({ at, length });
          else await storage.truncate(at);
        }
        expect(scratch.size).toBe(model.size);
        const read = new Uint8Array(SPACE + 32 * KiB);
        await scratch.read(0, read);
        expect(Buffer.from(read.subarray(0, model.size)).equals(model.bytes())).toBe(true);
        expect(read.subarray(model.size).every((byte) => byte === 0)).toBe(true);
        for (let from = 0; from < SPACE; ) {
          const run = await scratch.extent({ at: from, length: SPACE - from });
          expect(run.length).toBeGreaterThan(0);
          if (!run.data)
            expect(read.subarray(from, from + run.length).every((byte) => byte === 0)).toBe(true);
          from += run.length;
        }
      }
      expect(Buffer.from(below.bytes()).equals(before)).toBe(true);
    }
  });

  it('count what the host would have allocated, and no more memory than is allowed', async () => {
    const below = new MemoryStorage(1024 * KiB);
    await below.write(0, filled(64 * KiB, 1));
    const memory = new ScratchMemory(64 * KiB);
    const scratch = new ScratchStorage(below, memory);
    await scratch.write(8 * KiB, filled(16 * KiB, 2));
    expect(await scratch.needed()).toBe(0);
    await scratch.zero({ at: 128 * KiB, length: 64 * KiB });
    await scratch.truncate(1088 * KiB, 'falloc');
    const needed = await scratch.needed();
    expect(needed).toBeGreaterThanOrEqual(128 * KiB);
    expect(needed).toBeLessThan(144 * KiB);
    expect(memory.exhausted).toBe(false);
    await expect(scratch.write(0, filled(128 * KiB, 3))).rejects.toMatchObject({ kind: 'limit' });
    expect(memory.exhausted).toBe(true);
  });
});
