/** The qcow2 checker by itself, on images that the driver makes and the test damages. */
import { describe, expect, it } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { checker, repairDirty } from '../../src/engine/formats/qcow2/check.js';
import { ReferenceCounts } from '../../src/engine/formats/qcow2/check-counts.js';
import type { CheckContext, CheckResult } from '../../src/engine/node/driver.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import type { MemoryStorage } from '../../src/engine/storage/memory.js';
import { createImage, openImage } from './qcow2-support.js';

const COPIED = 1n << 63n;

/** An image with clusters of 512 bytes and content in its first 4 KiB. */
async function sample(options: OptionValues = {}, size = 64 * 1024): Promise<MemoryStorage> {
  const made = await createImage(size, { cluster_size: 512, ...options });
  const { image } = await openImage(made, { writable: true });
  await image.write(0, new Uint8Array(4096).fill(0x5a));
  await image.close();
  return made.file;
}

function patch(file: MemoryStorage, at: number, value: bigint): Promise<void> {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return file.write(at, bytes);
}

function word(file: MemoryStorage, at: number): bigint {
  return Buffer.from(file.bytes({ at, length: 8 })).readBigUInt64BE();
}

const place = (file: MemoryStorage, at: number): number => Number(word(file, at) & 0x00fffffffffffe00n);
const l1 = (file: MemoryStorage): number => place(file, 40);
const l2 = (file: MemoryStorage, entry = 0): number => place(file, l1(file)) + entry * 8;
const refcount = (file: MemoryStorage, cluster: number): number => place(file, place(file, 48)) + cluster * 2;

async function check(
  file: MemoryStorage,
  repair: 'none' | 'leaks' | 'all' = 'none',
  more: Partial<CheckContext> = {},
): Promise<{ result: CheckResult; lines: string[] }> {
  const lines: string[] = [];
  const result = await checker({ file }).check({
    repair: { leaks: repair !== 'none', errors: repair === 'all' },
    report: (line) => lines.push(line),
    ...more,
  });
  return { result, lines };
}

describe('the qcow2 checker', () => {
  it('finds nothing in a sound image and counts its clusters', async () => {
    const { result, lines } = await check(await sample());
    expect(lines).toEqual([]);
    expect(result).toEqual({
      checkErrors: 0,
      corruptions: 0,
      leaks: 0,
      corruptionsFixed: 0,
      leaksFixed: 0,
      totalClusters: 128,
      allocatedClusters: 8,
      fragmentedClusters: 0,
      compressedClusters: 0,
      imageEndOffset: 13 * 512,
    });
  });

  it('finds a leak and gives it back', async () => {
    const file = await sample();
    await file.truncate(20 * 512);
    await file.write(refcount(file, 17), Uint8Array.of(0, 2));
    expect(await check(file)).toMatchObject({
      lines: ['Leaked cluster 17 refcount=2 reference=0'],
      result: { leaks: 1, corruptions: 0, imageEndOffset: 18 * 512 },
    });
    expect(await check(file, 'leaks')).toMatchObject({
      lines: ['Leaked cluster 17 refcount=2 reference=0', 'Repairing cluster 17 refcount=2 reference=0'],
      result: { leaks: 0, leaksFixed: 1, corruptionsFixed: 0 },
    });
    expect((await check(file)).lines).toEqual([]);
  });

  it('raises a refcount that is too low and clears the copied flags', async () => {
    const file = await sample();
    await patch(file, l2(file, 20), word(file, l2(file, 3)));
    const { result, lines } = await check(file, 'all');
    const entry = word(file, l2(file, 3)) | COPIED;
    expect(lines.slice(1)).toEqual([
      'Repairing cluster 8 refcount=1 reference=2',
      `Repairing OFLAG_COPIED data cluster: l2_entry=${entry.toString(16)} refcount=2`,
      `Repairing OFLAG_COPIED data cluster: l2_entry=${entry.toString(16)} refcount=2`,
    ]);
    expect(result).toMatchObject({ corruptions: 0, corruptionsFixed: 3 });
    expect((await check(file)).lines).toEqual([]);
  });

  it('does not rebuild refcounts where only leaks may be repaired', async () => {
    const file = await sample();
    await file.write(refcount(file, 6), Uint8Array.of(0, 0));
    const before = file.bytes();
    await expect(check(file, 'leaks')).rejects.toThrow('Check failed: Input/output error');
    expect(file.bytes()).toEqual(before);
    expect((await check(file, 'all')).lines).toContain('Rebuilding refcount structure');
    expect((await check(file)).lines).toEqual([]);
  });

  it('clears the dirty and the corrupt bit after a repair', async () => {
    const file = await sample();
    await patch(file, 72, 3n);
    await check(file);
    expect(word(file, 72)).toBe(3n);
    await check(file, 'all');
    expect(word(file, 72)).toBe(0n);
  });

  it('says where counts exceed their width', async () => {
    const file = await sample({ refcount_bits: 1 });
    await patch(file, l2(file, 20), word(file, l2(file, 0)));
    const { result, lines } = await check(file);
    expect(lines[0]).toBe('ERROR: overflow cluster offset=0xa00');
    expect(lines[1]).toMatch(/^Use qemu-img amend to increase the refcount entry width/);
    expect(result.corruptions).toBe(1);
  });

  it('counts more references than a byte holds', async () => {
    const file = await sample({}, 2 * 1024 * 1024);
    const table = word(file, l1(file));
    for (let entry = 0; entry < 64; entry++) await patch(file, l2(file, entry), word(file, l2(file, 0)));
    for (let index = 1; index < 12; index++) await patch(file, l1(file) + index * 8, table);
    const { lines } = await check(file);
    expect(lines.slice(0, 2)).toEqual([
      'ERROR cluster 4 refcount=1 reference=12',
      'ERROR cluster 5 refcount=1 reference=768',
    ]);
    await check(file, 'all');
    expect((await check(file)).lines).toEqual([]);
  });

  it('marks an image whose refcount block is nowhere, and mends it', async () => {
    const file = await sample({ cluster_size: 1024 });
    await patch(file, place(file, 48), word(file, place(file, 48)) + 512n);
    const first = await check(file);
    expect(first.result.checkErrors).toBeGreaterThan(0);
    expect(first.lines[1]).toMatch(/^qcow2: Image is corrupt: Refblock offset 0x\w+ unaligned/);
    await check(file, 'all');
    expect((await check(file)).lines).toEqual([]);
    expect(word(file, 72)).toBe(0n);
  });

  it('stops when it is cancelled', async () => {
    const file = await sample({}, 1024 * 1024);
    const abort = new AbortController();
    abort.abort();
    await expect(check(file, 'none', { signal: abort.signal })).rejects.toMatchObject({ kind: 'cancelled' });
  });

  it('tells how far it is', async () => {
    const seen: [number, number][] = [];
    await check(await sample(), 'none', { progress: (done, total) => seen.push([done, total]) });
    expect(seen.at(-1)).toEqual([512, 512]);
  });

  it('lets the caller write its caches before, and read anew after a repair', async () => {
    const file = await sample();
    const calls: string[] = [];
    const facet = checker({
      file,
      quiesce: async () => void calls.push('quiesce'),
      reload: async () => void calls.push('reload'),
    });
    await facet.check({ repair: { leaks: false, errors: false }, report: () => {} });
    expect(calls).toEqual(['quiesce']);
    await facet.check({ repair: { leaks: true, errors: false }, report: () => {} });
    expect(calls).toEqual(['quiesce', 'quiesce', 'reload']);
  });
});

describe('the dirty bit', () => {
  it('is repaired by an open for writing', async () => {
    const file = await sample({ lazy_refcounts: true });
    await file.write(refcount(file, 6), new Uint8Array(6));
    await patch(file, 72, 1n);
    const { image } = await openImage({ file }, { writable: true });
    await image.close();
    expect(word(file, 72) & 1n).toBe(0n);
    expect((await check(file)).lines).toEqual([]);
  });

  it('stays where the image cannot be repaired', async () => {
    const file = await sample({ lazy_refcounts: true });
    await patch(file, l2(file, 0), COPIED | 0x4000000n);
    await patch(file, 72, 1n);
    await expect(repairDirty({ file })).rejects.toThrow('Could not repair dirty image: Input/output error');
    expect(word(file, 72) & 1n).toBe(1n);
  });
});

describe('hostile images', () => {
  it('of more clusters than are counted end in an error at once', async () => {
    const file = await sample();
    await file.truncate(2 ** 50);
    await expect(check(file)).rejects.toMatchObject({ kind: 'limit' });
  });

  it('that are huge and empty take no memory', async () => {
    const file = await sample();
    await file.truncate(2 ** 38);
    const { result } = await check(file);
    expect(result.imageEndOffset).toBe(13 * 512);
  });

  it('cannot make the checker take memory for clusters far apart', () => {
    const counts = new ReferenceCounts(0x7fff_ffff, 65535);
    // one reference in each chunk: an honest table would fill it
    const spread = (): void => {
      for (let cluster = 0; cluster < 0x7fff_ffff; cluster += 1 << 14) counts.add(cluster);
    };
    expect(spread).toThrow(ImageError);
  });

  it('with tables beyond the end of the file are told, not read', async () => {
    const file = await sample();
    await patch(file, l1(file), COPIED | 0xfffffffffffe00n);
    const { lines } = await check(file);
    expect(lines[0]).toBe(
      'ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0xfffffffffffe00 size 0x200',
    );
  });

  it('are not extended to where no refcount table reaches', async () => {
    const file = await sample();
    await patch(file, place(file, 48) + 8, 0x70000000000000n);
    const size = file.size;
    const { lines } = await check(file, 'all');
    expect(lines.slice(0, 3)).toEqual([
      'Repairing refcount block 1 is outside image',
      'qemu-img: Could not resize file: File too large',
      'ERROR could not resize image: File too large',
    ]);
    expect(file.size).toBeLessThan(size + 4096);
    expect((await check(file)).lines).toEqual([]);
  });
});

describe('reference counts', () => {
  it('go beyond a byte and stop at the width', () => {
    const counts = new ReferenceCounts(10, 300);
    for (let times = 0; times < 300; times++) expect(counts.add(3)).toBe(true);
    expect(counts.get(3)).toBe(300);
    expect(counts.add(3)).toBe(false);
    expect(counts.get(4)).toBe(0);
  });

  it('find free runs', () => {
    const counts = new ReferenceCounts(10, 1);
    for (const cluster of [0, 1, 4, 5, 9]) counts.add(cluster);
    expect(counts.freeRun(0, 1)).toBe(2);
    expect(counts.freeRun(0, 3)).toBe(6);
    expect(counts.freeRun(0, 4)).toBe(10);
  });
});
