import { execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type CacheMode, openFile } from '../../src/engine/storage/file.js';
import { libc } from '../../src/engine/storage/host/libc.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import type { Storage } from '../../src/engine/storage/storage.js';
import { tempDir } from '../support/reference.js';

const folder = tempDir();
const MB = 2 ** 20;
let count = 0;
const fresh = () => join(folder, `f${++count}`);

function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = ((i * 131 + seed * 17) % 251) + 1;
  return bytes;
}

async function read(storage: Storage, at: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length).fill(0xee);
  await storage.read(at, into);
  return into;
}

/** Exact, and much faster than toEqual on megabytes. */
function same(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

const blocks = (path: string) => statSync(path).blocks * 512;

describe('openFile', () => {
  it('says what is wrong with a name in QEMU words', async () => {
    const missing = fresh();
    await expect(openFile({ path: missing, filename: 'nope', writable: false })).rejects.toMatchObject({
      kind: 'not-found',
      message: "Could not open 'nope': No such file or directory",
      context: { path: 'nope', errno: 'ENOENT' },
    });
    const dir = fresh();
    mkdirSync(dir);
    await expect(openFile({ path: dir, filename: 'd', writable: false })).rejects.toMatchObject({
      message: "'file' driver requires 'd' to be a regular file",
    });
    await expect(
      openFile({ path: dir, filename: 'd', writable: true, create: 'truncate' }),
    ).rejects.toMatchObject({
      message: "Could not create 'd': Is a directory",
    });
    const file = fresh();
    writeFileSync(file, 'x');
    await expect(
      openFile({ path: join(file, 'x'), filename: 'f/x', writable: true, create: 'truncate' }),
    ).rejects.toMatchObject({ message: "Could not create 'f/x': Not a directory" });
    await expect(
      openFile({ path: file, filename: 'f', writable: false, driver: 'host_device' }),
    ).rejects.toMatchObject({
      message: "'host_device' driver requires 'f' to be either a character or block device",
    });
    await expect(
      openFile({ path: file, filename: 'f', writable: true, create: 'exclusive' }),
    ).rejects.toMatchObject({ kind: 'exists', message: "Could not create 'f': File exists" });
  });

  it('refuses a pipe at once instead of waiting for its other end', async () => {
    const path = fresh();
    execFileSync('mkfifo', [path]);
    for (const writable of [false, true]) {
      await expect(openFile({ path, filename: 'p', writable })).rejects.toMatchObject({
        message: "'file' driver requires 'p' to be a regular file",
      });
    }
  });

  it('creates, empties, and sets the mode', async () => {
    const path = fresh();
    const created = await openFile({ path, writable: true, create: 'exclusive', mode: 0o600 });
    expect(created.size).toBe(0);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    await created.write(0, pattern(10));
    await created.close();
    const again = await openFile({ path, writable: true, create: 'truncate' });
    expect(again.size).toBe(0);
    await again.close();
    expect(statSync(path).size).toBe(0);
  });

  it('gives two names of one file the same identity', async () => {
    const path = fresh();
    writeFileSync(path, 'x');
    linkSync(path, `${path}-hard`);
    symlinkSync(path, `${path}-soft`);
    const identities = [];
    for (const name of [path, `${path}-hard`, `${path}-soft`]) {
      const file = await openFile({ path: name, writable: false });
      identities.push(file.identity);
      await file.close();
    }
    expect(identities[1]).toEqual(identities[0]);
    expect(identities[2]).toEqual(identities[0]);
  });

  it('opens character devices as host_device', async () => {
    const file = await openFile({ path: '/dev/zero', writable: false });
    expect(file.driver).toBe('host_device');
    expect(file.size).toBe(0);
    expect(await read(file, 0, 10)).toEqual(new Uint8Array(10));
    await file.close();
    await expect(openFile({ path: '/dev/zero', writable: false, driver: 'file' })).rejects.toMatchObject({
      message: "'file' driver requires '/dev/zero' to be a regular file",
    });
  });
});

for (const cache of ['writeback', 'unsafe', 'writethrough', 'none', 'directsync'] as CacheMode[]) {
  describe(`a file with cache=${cache}`, () => {
    it('agrees with a model over random requests, unaligned ones too', async () => {
      const path = fresh();
      const file = await openFile({ path, writable: true, create: 'truncate', cache });
      const model = new MemoryStorage();
      let state = 12345;
      const random = (limit: number) => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        return Math.floor((state / 2 ** 32) * limit);
      };
      for (let i = 0; i < 120; i++) {
        const at = random(2) === 0 ? random(200) * 512 : random(100_000);
        const length = random(8) === 0 ? MB + random(100_000) : random(20_000);
        switch (random(6)) {
          case 0:
            await Promise.all([file, model].map((s) => s.zero({ at, length }, { unmap: random(2) === 0 })));
            break;
          case 1:
            // Undefined content by contract: as it was without host calls, zeros on the filesystems that tests run on and in memory.
            if (libc()) await Promise.all([file, model].map((s) => s.discard({ at, length })));
            break;
          case 2:
            await Promise.all([file, model].map((s) => s.truncate(at + 50_000)));
            break;
          default:
            await Promise.all([file, model].map((s) => s.write(at, pattern(length, i))));
        }
        expect(file.size, `step ${i}`).toBe(model.size);
        const [from, count] = [random(90_000), random(60_000)];
        expect(same(await read(file, from, count), await read(model, from, count)), `step ${i}`).toBe(true);
      }
      await file.flush();
      expect(fstatSync(openSync(path, 'r')).size).toBe(model.size);
      expect(same(readFileSync(path), model.bytes())).toBe(true);
      await file.close();
    });

    it('keeps unaligned neighbours apart when they are written at the same time', async () => {
      const path = fresh();
      const file = await openFile({ path, writable: true, create: 'truncate', cache });
      const whole = pattern(64 * 1024);
      const parts: Promise<void>[] = [];
      for (let at = 0; at < whole.length; at += 1000) {
        parts.push(file.write(at, whole.subarray(at, Math.min(at + 1000, whole.length))));
      }
      await Promise.all(parts);
      expect(same(await read(file, 0, whole.length), whole)).toBe(true);
      expect(file.size).toBe(whole.length);
      await file.close();
      expect(statSync(path).size).toBe(whole.length);
    });
  });
}

describe('zero and discard', () => {
  it('gives space back with unmap and on discard, keeps it without', async () => {
    const path = fresh();
    const file = await openFile({ path, writable: true, create: 'truncate' });
    await file.write(0, pattern(4 * MB));
    await file.flush();
    const full = blocks(path);
    await file.zero({ at: 0, length: MB });
    expect(blocks(path)).toBe(full);
    await file.zero({ at: 0, length: MB }, { unmap: true });
    expect(blocks(path)).toBeLessThanOrEqual(full - MB + 65536);
    await file.discard({ at: MB, length: MB });
    expect(blocks(path)).toBeLessThanOrEqual(full - 2 * MB + 65536);
    expect(same(await read(file, 0, 2 * MB), new Uint8Array(2 * MB))).toBe(true);
    expect(same(await read(file, 2 * MB, 2 * MB), pattern(4 * MB).subarray(2 * MB))).toBe(true);
    await file.close();
  });

  it('gives nothing back with discard=ignore', async () => {
    const path = fresh();
    const file = await openFile({ path, writable: true, create: 'truncate', discard: 'ignore' });
    await file.write(0, pattern(MB));
    await file.flush();
    const full = blocks(path);
    await file.discard({ at: 0, length: MB });
    expect(same(await read(file, 0, MB), pattern(MB))).toBe(true);
    await file.zero({ at: 0, length: MB }, { unmap: true });
    expect(blocks(path)).toBe(full);
    await file.close();
  });

  it('grows the file past its end, without space where unmap is allowed', async () => {
    const path = fresh();
    const file = await openFile({ path, writable: true, create: 'truncate' });
    await file.zero({ at: 5 * MB, length: 10 * MB }, { unmap: true });
    expect(file.size).toBe(15 * MB);
    expect(statSync(path).size).toBe(15 * MB);
    expect(blocks(path)).toBeLessThan(MB);
    await file.close();
  });
});

describe('truncate', () => {
  it('preallocates with falloc and full', async () => {
    for (const mode of ['falloc', 'full'] as const) {
      const path = fresh();
      const file = await openFile({ path, writable: true, create: 'truncate' });
      await file.truncate(MB);
      await file.truncate(3 * MB, mode);
      expect(statSync(path).size).toBe(3 * MB);
      expect(file.size).toBe(3 * MB);
      expect(blocks(path)).toBeGreaterThanOrEqual(2 * MB);
      expect(blocks(path)).toBeLessThan(2.5 * MB);
      await expect(file.truncate(MB, mode)).rejects.toMatchObject({
        message: 'Cannot use preallocation for shrinking files',
      });
      await file.close();
    }
  });

  it('leaves the file as it was where there is no room', async () => {
    const path = fresh();
    const file = await openFile({ path, writable: true, create: 'truncate' });
    await file.truncate(MB);
    // No filesystem of the hosts that tests run on has 2^50 bytes.
    await expect(file.truncate(2 ** 50, 'falloc')).rejects.toMatchObject({
      kind: 'no-space',
      message: expect.stringMatching(/^Could not preallocate new data: /),
    });
    expect(file.size).toBe(MB);
    expect(statSync(path).size).toBe(MB);
    await expect(file.truncate(2 * MB, 'metadata')).rejects.toMatchObject({
      message: 'Unsupported preallocation mode: metadata',
    });
    await file.close();
  });
});

describe('extent', () => {
  it('tells data from holes, and sees its own writes and discards', async () => {
    const path = fresh();
    const file = await openFile({ path, writable: true, create: 'truncate' });
    await file.truncate(8 * MB);
    // A new file's first block is allocated.
    expect(await file.extent({ at: 0, length: 8 * MB })).toEqual({ data: true, length: 4096 });
    expect(await file.extent({ at: 4096, length: MB })).toEqual({ data: false, length: MB });
    await file.write(2 * MB, pattern(MB));
    expect(await file.extent({ at: 4096, length: 8 * MB - 4096 })).toEqual({
      data: false,
      length: 2 * MB - 4096,
    });
    expect(await file.extent({ at: 2 * MB, length: 6 * MB })).toEqual({ data: true, length: MB });
    expect(await file.extent({ at: 2 * MB + 512, length: 1024 })).toEqual({ data: true, length: 1024 });
    expect(await file.extent({ at: 3 * MB, length: MB })).toEqual({ data: false, length: MB });
    await file.discard({ at: 2 * MB, length: MB });
    expect(await file.extent({ at: 2 * MB, length: MB })).toEqual({ data: false, length: MB });
    await file.write(3 * MB, pattern(MB));
    expect(await file.extent({ at: 3 * MB, length: MB })).toEqual({ data: true, length: MB });
    expect(await file.extent({ at: 8 * MB, length: 100 })).toEqual({ data: false, length: 100 });
    expect(await file.extent({ at: 100 * MB, length: 100 })).toEqual({ data: false, length: 100 });
    await file.close();
  });
});

describe('large writes', () => {
  it('leave no space behind that was not written', async () => {
    const path = fresh();
    const file = await openFile({ path, writable: true, create: 'truncate' });
    await file.truncate(64 * MB);
    await Promise.all([0, 8, 16, 32].map((n) => file.write(n * MB, pattern(2 * MB, n))));
    await file.write(60 * MB, pattern(3 * MB));
    await file.close();
    expect(blocks(path)).toBeLessThan(11 * MB + 256 * 1024);
    const content = readFileSync(path);
    expect(content.length).toBe(64 * MB);
    expect(same(content.subarray(8 * MB, 10 * MB), pattern(2 * MB, 8))).toBe(true);
    expect(content.subarray(10 * MB, 16 * MB).every((byte) => byte === 0)).toBe(true);
  });
});

describe('a closed, read-only or broken file', () => {
  it('lets requests end before its descriptor goes, and takes none after', async () => {
    const path = fresh();
    const file = await openFile({ path, writable: true, create: 'truncate' });
    const writing = Array.from({ length: 8 }, (_, n) => file.write(n * MB, pattern(MB, n)));
    await file.close();
    await Promise.all(writing);
    expect(statSync(path).size).toBe(8 * MB);
    await expect(file.read(0, new Uint8Array(1))).rejects.toMatchObject({ kind: 'internal' });
  });

  it('refuses changes where it was opened for reading', async () => {
    const path = fresh();
    writeFileSync(path, 'abc');
    const file = await openFile({ path, writable: false });
    for (const change of [
      () => file.write(0, pattern(1)),
      () => file.zero({ at: 0, length: 1 }),
      () => file.truncate(0),
      () => file.discard({ at: 0, length: 1 }),
    ]) {
      await expect(change()).rejects.toMatchObject({ kind: 'read-only' });
    }
    await file.flush();
    await file.close();
  });

  it('refuses ranges that are none', async () => {
    const path = fresh();
    const file = await openFile({ path, writable: true, create: 'truncate' });
    for (const at of [-1, 1.5, Number.NaN, 2 ** 53]) {
      await expect(file.read(at, new Uint8Array(8))).rejects.toMatchObject({ kind: 'io' });
      await expect(file.write(at, new Uint8Array(8))).rejects.toMatchObject({ kind: 'io' });
    }
    await file.close();
  });

  it('reports a full disk with its errno, text and place', async () => {
    if (!existsSync('/dev/full')) return;
    const file = await openFile({ path: '/dev/full', writable: true });
    await expect(file.write(4096, pattern(10))).rejects.toMatchObject({
      kind: 'no-space',
      message: 'No space left on device',
      context: { path: '/dev/full', errno: 'ENOSPC', operation: 'write', offset: 4096 },
    });
    await file.close();
  });
});

describe('copyRange', () => {
  it('copies inside the host up to the end of the source', async () => {
    const [a, b] = [fresh(), fresh()];
    writeFileSync(a, pattern(3 * MB));
    const from = await openFile({ path: a, writable: false });
    const to = await openFile({ path: b, writable: true, create: 'truncate' });
    expect(await to.copyRange(from, { at: MB, length: 4 * MB }, 100)).toBe(2 * MB);
    expect(to.size).toBe(2 * MB + 100);
    expect(same(await read(to, 100, 2 * MB), pattern(3 * MB).subarray(MB))).toBe(true);
    expect(await to.copyRange(new MemoryStorage(10), { at: 0, length: 10 }, 0)).toBe(0);
    await from.close();
    await to.close();
  });
});

describe('files that another changes', () => {
  it('read as zeros where they were cut', async () => {
    const path = fresh();
    writeFileSync(path, pattern(MB));
    const file = await openFile({ path, writable: false });
    const other = openSync(path, 'r+');
    ftruncateSync(other, 1000);
    expect(
      same(
        await read(file, 990, 20),
        Uint8Array.of(...pattern(MB).subarray(990, 1000), ...new Array(10).fill(0)),
      ),
    ).toBe(true);
    expect(await file.extent({ at: 4096, length: 4096 })).toEqual({ data: false, length: 4096 });
    writeSync(other, pattern(10), 0, 10, 2000);
    closeSync(other);
    expect(same(await read(file, 2000, 10), pattern(10))).toBe(true);
    await file.close();
  });
});
