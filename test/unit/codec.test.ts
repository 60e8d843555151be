import { randomBytes } from 'node:crypto';
import zlib from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { compressRaw, inflateRaw, inflateZlib } from '../../src/engine/codec/deflate.js';
import { compressZstd, decompressZstd, zstdAvailable } from '../../src/engine/codec/zstd.js';

const text = (size: number) => {
  const out = Buffer.alloc(size);
  for (let i = 0; i < size; i++) out[i] = (i * i) % 97;
  return out;
};

describe('raw deflate', () => {
  it('makes streams with a 4 KiB window that any inflate reads', async () => {
    const data = Buffer.concat([text(30_000), randomBytes(5_536), text(30_000)]);
    const packed = (await compressRaw(data, { windowBits: 12 }))!;
    expect(packed.byteLength).toBeLessThan(data.byteLength);
    expect(zlib.inflateRawSync(packed, { windowBits: 12 }).equals(data)).toBe(true);
    const back = Buffer.alloc(data.byteLength);
    await inflateRaw(Buffer.concat([packed, randomBytes(300)]), back, 12);
    expect(back.equals(data)).toBe(true);
  });

  it('says that random data does not shrink', async () => {
    expect(await compressRaw(randomBytes(65_536), { windowBits: 12 })).toBeUndefined();
  });

  it('runs many at once with equal results', async () => {
    const inputs = Array.from({ length: 40 }, (_, i) => text(65_536).fill(i, 0, 1000 + i * 100));
    const packed = await Promise.all(inputs.map((data) => compressRaw(data, { windowBits: 12 })));
    const outputs = inputs.map(() => Buffer.alloc(65_536));
    await Promise.all(packed.map((data, i) => inflateRaw(data!, outputs[i]!, 12)));
    inputs.forEach((data, i) => {
      expect(outputs[i]!.equals(data)).toBe(true);
    });
  });

  it('refuses garbage, cut and short streams as corrupt', async () => {
    const packed = (await compressRaw(text(65_536), { windowBits: 12 }))!;
    const corrupt = { kind: 'corrupt' };
    await expect(inflateRaw(packed.subarray(0, 20), Buffer.alloc(65_536), 12)).rejects.toMatchObject(corrupt);
    await expect(inflateRaw(packed, Buffer.alloc(65_537), 12)).rejects.toMatchObject(corrupt);
    await expect(inflateRaw(Buffer.alloc(100, 0xff), Buffer.alloc(100), 12)).rejects.toMatchObject(corrupt);
  });

  it('inflates zlib streams and zero-fills what they leave', async () => {
    const into = Buffer.alloc(2000, 7);
    await inflateZlib(zlib.deflateSync(text(1000)), into);
    expect(into.equals(Buffer.concat([text(1000), Buffer.alloc(1000)]))).toBe(true);
  });
});

describe.skipIf(!zstdAvailable())('zstd', () => {
  it('round-trips, ignores what follows, and reads several frames', async () => {
    const data = text(65_536);
    const packed = (await compressZstd(data))!;
    const half = (await compressZstd(data.subarray(0, 30_000)))!;
    const rest = (await compressZstd(data.subarray(30_000)))!;
    for (const stored of [Buffer.concat([packed, randomBytes(99)]), Buffer.concat([half, rest])]) {
      const back = Buffer.alloc(65_536);
      await decompressZstd(stored, back);
      expect(back.equals(data)).toBe(true);
    }
  });

  it('refuses garbage and too little', async () => {
    const packed = (await compressZstd(text(1000)))!;
    const corrupt = { kind: 'corrupt' };
    await expect(decompressZstd(packed, Buffer.alloc(1001))).rejects.toMatchObject(corrupt);
    await expect(decompressZstd(randomBytes(500), Buffer.alloc(100))).rejects.toMatchObject(corrupt);
    await expect(decompressZstd(packed.subarray(0, 10), Buffer.alloc(1000))).rejects.toMatchObject(corrupt);
    expect(await compressZstd(randomBytes(1000))).toBeUndefined();
  });
});
