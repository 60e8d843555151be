/** Repairs do not write over metadata that lies where it should not be. */
import { describe, expect, it } from 'vitest';
import { checker } from '../../src/engine/formats/qcow2/check.js';
import { readCheckHeader } from '../../src/engine/formats/qcow2/check-image.js';
import { MetadataGuard } from '../../src/engine/formats/qcow2/check-overlap.js';
import type { CheckResult } from '../../src/engine/node/driver.js';
import type { MemoryStorage } from '../../src/engine/storage/memory.js';
import { createImage, openImage } from './qcow2-support.js';

/** 4 KiB of content in an image of 1 MiB. */
async function sample(clusterSize = 512, compat = '1.1', fill = 0x5a): Promise<MemoryStorage> {
  const made = await createImage(1 << 20, { cluster_size: clusterSize, compat });
  const { image } = await openImage(made, { writable: true });
  await image.write(0, new Uint8Array(4096).fill(fill));
  await image.close();
  return made.file;
}

async function set(file: MemoryStorage, at: number, value: bigint, width: 4 | 8 = 8): Promise<void> {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  await file.write(at, bytes.subarray(8 - width));
}

function word(file: MemoryStorage, at: number): bigint {
  return Buffer.from(file.bytes({ at, length: 8 })).readBigUInt64BE();
}

const place = (file: MemoryStorage, at: number): number => Number(word(file, at) & 0x00fffffffffffe00n);

async function repair(
  file: MemoryStorage,
): Promise<{ lines: string[]; result?: CheckResult; failure?: string }> {
  const lines: string[] = [];
  try {
    const result = await checker({ file }).check({
      repair: { leaks: true, errors: true },
      report: (line) => lines.push(line),
    });
    return { lines, result };
  } catch (error) {
    return { lines, failure: (error as Error).message };
  }
}

const refused = (kind: string): string =>
  `qcow2: Marking image as corrupt: Preventing invalid write on metadata (overlaps with ${kind}); further corruption events will be suppressed`;

describe('check -r all', () => {
  it('does not rebuild refcounts into a snapshot table that reaches over the end of the file', async () => {
    const file = await sample(4096, '0.10', 0);
    await set(file, 60, 2000n, 4);
    const before = file.bytes();
    const { lines, failure } = await repair(file);
    expect(failure).toBe('Check failed: Input/output error');
    expect(lines.slice(-3)).toEqual([
      'Rebuilding refcount structure',
      refused('snapshot table'),
      'qemu-img: ERROR writing refblock: Input/output error',
    ]);
    expect(Buffer.compare(file.bytes(), before)).toBe(0);
  });

  it('does not write to an L2 table that is the header', async () => {
    const file = await sample(4096);
    // offset 0 is one all the same where a bit is set; the image size is then an unaligned cluster that reads as zeros
    await set(file, 36, 2n, 4);
    await set(file, place(file, 40) + 8, 1n);
    await set(file, 24, 0x100201n);
    const before = file.bytes();
    const { lines, failure } = await repair(file);
    expect(failure).toBe('Check failed: Input/output error');
    expect(lines.slice(-2)).toEqual([refused('qcow2_header'), 'ERROR: Overlap check failed']);
    // not even the mark, which would be another entry of the table
    expect(Buffer.compare(file.bytes(), before)).toBe(0);
  });

  it('takes back refcounts when the copied flags that belong to them cannot be written', async () => {
    const file = await sample();
    const l1 = place(file, 40);
    const l2 = place(file, l1);
    // the L1 table reaches over the L2 table, which has two entries for one cluster
    await set(file, 36, BigInt((l2 + 512 - l1) / 8), 4);
    await set(file, l2 + 8, word(file, l2));
    const { result: before } = await checkOnly(file);
    const refcounts = file.bytes({ at: place(file, place(file, 48)), length: 512 });
    const { lines, failure } = await repair(file);
    expect(failure).toBe('Check failed: Input/output error');
    expect(lines.some((line) => line === refused('active L1 table'))).toBe(true);
    expect(file.bytes({ at: place(file, place(file, 48)), length: 512 })).toEqual(refcounts);
    const { result: after } = await checkOnly(file);
    expect(after.corruptions).toBeLessThanOrEqual(before.corruptions);
  });

  it('marks an image corrupt where it has refused to write', async () => {
    const file = await sample();
    const l1 = place(file, 40);
    const l2 = place(file, l1);
    await set(file, 36, BigInt((l2 + 512 - l1) / 8), 4);
    await set(file, l2 + 8, word(file, l2));
    await repair(file);
    expect(word(file, 72) & 2n).toBe(2n);
  });

  it('does not make the file longer for nothing', async () => {
    const file = await sample();
    await set(file, place(file, 48) + 8, 0x20000n);
    await set(file, 60, 4000n, 4);
    const { size } = file;
    const { failure } = await repair(file);
    expect(failure).toBe('Check failed: Input/output error');
    expect(file.size).toBe(size);
  });
});

async function checkOnly(file: MemoryStorage): Promise<{ result: CheckResult }> {
  const result = await checker({ file }).check({ repair: { leaks: false, errors: false }, report: () => {} });
  return { result };
}

describe('the guard of the metadata', () => {
  it('knows the place of each kind', async () => {
    const file = await sample();
    const header = await readCheckHeader(file);
    const guard = new MetadataGuard(() => {});
    await guard.load(file, header, {
      at: 1 << 20,
      length: 100,
      snapshots: [{ l1At: 2 << 20, l1Entries: 3 }],
    });
    const table = place(file, 48);
    expect(guard.find(100, 4, [])).toBe('qcow2_header');
    expect(guard.find(header.l1.at, 8, [])).toBe('active L1 table');
    expect(guard.find(header.l1.at, 8, ['active L1 table'])).toBeUndefined();
    expect(guard.find(table, 512, [])).toBe('refcount table');
    expect(guard.find(place(file, table), 512, [])).toBe('refcount block');
    expect(guard.find(place(file, header.l1.at) + 8, 8, [])).toBe('active L2 table');
    // compared by clusters
    expect(guard.find((1 << 20) + 200, 8, [])).toBe('snapshot table');
    expect(guard.find((1 << 20) + 512, 8, [])).toBeUndefined();
    expect(guard.find((2 << 20) - 512, 1024, [])).toBe('inactive L1 table');
    expect(guard.tablesOverlap()).toBe(false);
  });
});
