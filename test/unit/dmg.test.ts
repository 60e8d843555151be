import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { deflateSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { decodeBzip2 } from '../../src/engine/codec/bzip2.js';
import type { ErrorKind } from '../../src/engine/error.js';
import { dmg } from '../../src/engine/formats/dmg/index.js';
import * as kind from '../../src/engine/formats/dmg/layout.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { adcCompress, lzfseStream, lzvnBlock, rawBlock, sampleText } from '../support/codec-streams.js';
import { bzip2Pattern, lzfseText } from '../support/codec-vectors.js';
import { buildDmg, type ChunkSpec, type ImageSpec } from '../support/dmg-image.js';
import { contentOf, extentsOf, memoryContext } from '../support/open-memory.js';

const text = sampleText(64 * 512);
const zlibChunk: ChunkSpec = { kind: kind.ZLIB, sectors: 64, stored: deflateSync(text) };
const adcChunk: ChunkSpec = { kind: kind.ADC, sectors: 64, stored: adcCompress(text) };
const lzfseChunk: ChunkSpec = {
  kind: kind.LZFSE,
  sectors: 64,
  stored: lzfseStream(lzvnBlock(text.subarray(0, 20_000)), rawBlock(text.subarray(20_000))),
};
const rawChunk: ChunkSpec = { kind: kind.RAW, sectors: 64, stored: text };

function image(chunks: readonly ChunkSpec[], more: Partial<ImageSpec> = {}): ImageSpec {
  const sectors = chunks.reduce((sum, chunk) => sum + chunk.sectors, 0);
  return { sectors, partitions: [{ firstSector: 0, chunks }], ...more };
}

const open = (spec: ImageSpec) => dmg.open(memoryContext(buildDmg(spec).bytes));

async function expectError(promise: Promise<unknown>, errorKind: ErrorKind, message: string | RegExp) {
  await expect(promise).rejects.toMatchObject({ name: 'ImageError', kind: errorKind });
  await expect(promise).rejects.toThrow(message);
}

describe('dmg: reading', () => {
  test('a table of every kind of chunk', async () => {
    const node = await open(
      image([
        zlibChunk,
        { kind: kind.ZERO, sectors: 100 },
        { kind: kind.COMMENT, sectors: 0 },
        adcChunk,
        lzfseChunk,
        { kind: kind.IGNORE, sectors: 3 },
        rawChunk,
      ]),
    );
    expect(node.size).toBe((4 * 64 + 103) * 512);
    expect((await extentsOf(node)).map((extent) => [extent.kind, extent.length])).toEqual([
      ['packed', 32768],
      ['zero', 51200],
      ['packed', 32768],
      ['packed', 32768],
      ['zero', 1536],
      ['data', 32768],
    ]);
    const expected = Buffer.concat([text, new Uint8Array(51200), text, text, new Uint8Array(1536), text]);
    expect((await contentOf(node)).equals(expected)).toBe(true);
    // in pieces that fit no chunk
    expect((await contentOf(node, 5000)).equals(expected)).toBe(true);
  });

  test('a bzip2 chunk', async () => {
    const pattern = Uint8Array.from({ length: 256_000 }, (_, i) => (i % 50) * 5);
    const node = await open(image([rawChunk, { kind: kind.BZIP2, sectors: 500, stored: bzip2Pattern }]));
    expect((await contentOf(node)).equals(Buffer.concat([text, pattern]))).toBe(true);
    const shorter = await open(image([{ kind: kind.BZIP2, sectors: 499, stored: bzip2Pattern }]));
    await expectError(contentOf(shorter), 'corrupt', 'Invalid bzip2 data: the stream is too long');
  });

  test('an LZFSE chunk of the wrong size', async () => {
    const node = await open(image([{ kind: kind.LZFSE, sectors: 12, stored: lzfseText }]));
    await expectError(
      contentOf(node),
      'corrupt',
      /^Could not unpack the chunk at guest offset 0: Invalid LZFSE/,
    );
  });

  test('several partitions in any order, in a property list and in a resource fork', async () => {
    const other = sampleText(64 * 512 + 7).subarray(7);
    const spec: ImageSpec = {
      sectors: 131,
      partitions: [
        { firstSector: 67, chunks: [rawChunk] },
        {
          firstSector: 0,
          chunks: [
            { kind: kind.ZERO, sectors: 3 },
            { ...zlibChunk, stored: deflateSync(other) },
          ],
        },
      ],
    };
    const expected = Buffer.concat([new Uint8Array(3 * 512), other, text]);
    for (const more of [{}, { place: 'resource-fork' as const }, { lead: 1000 }, { trail: 0 }]) {
      const node = await open({ ...spec, ...more });
      expect((await contentOf(node)).equals(expected)).toBe(true);
    }
  });

  test('finds the trailer wherever QEMU does', async () => {
    const { bytes } = buildDmg(image([rawChunk]));
    // QEMU looks 1023 bytes before the end, in whole sectors, and 512 on.
    for (let length = bytes.length; length < bytes.length + 512; length++) {
      const padded = new Uint8Array(length);
      padded.set(bytes);
      const start = Math.ceil(length / 512) * 512 - 1023;
      const opened = dmg.open(memoryContext(padded));
      if (bytes.length - 512 >= start) expect((await opened).size).toBe(64 * 512);
      else await expectError(opened, 'corrupt', 'Could not locate UDIF trailer in dmg file');
    }
  });

  test('decodes a chunk once when it is read in pieces, also by several readers', async () => {
    const { bytes } = buildDmg(image([zlibChunk, adcChunk, lzfseChunk]));
    const file = new MemoryStorage(bytes, { writable: false });
    let reads = 0;
    const read = file.read.bind(file);
    file.read = (at, into) => {
      reads++;
      return read(at, into);
    };
    const node = await dmg.open(memoryContext(file));
    reads = 0;
    await Promise.all(
      Array.from({ length: 96 }, (_, i) => contentOf(node, 1024, { at: i * 1024, length: 1024 })),
    );
    expect(reads).toBe(3);
    await contentOf(node, 512);
    expect(reads).toBe(3);
  });

  test('chunks beyond the size of the image are cut', async () => {
    const node = await open(image([zlibChunk, rawChunk, { kind: kind.ZERO, sectors: 9 }], { sectors: 65 }));
    expect((await contentOf(node)).equals(Buffer.concat([text, text.subarray(0, 512)]))).toBe(true);
  });
});

describe('dmg: what cannot be read', () => {
  test('chunks of unknown kinds: a warning on opening, an error on reading them only', async () => {
    const chunk: ChunkSpec = { kind: kind.LZMA, sectors: 8, stored: text.subarray(0, 100) };
    const context = memoryContext(buildDmg(image([rawChunk, chunk, { ...chunk, kind: 9 }])).bytes);
    const node = await dmg.open(context);
    expect(context.warnings).toEqual([
      'Image contains chunks of unknown type 80000008, accessing them will result in I/O errors',
    ]);
    expect((await contentOf(node, 4096, { at: 0, length: 32768 })).equals(text)).toBe(true);
    await expectError(
      contentOf(node, 4096),
      'unsupported',
      'dmg: the chunk at guest offset 32768 has LZMA compression, which is not supported',
    );
    await expectError(
      contentOf(node, 4096, { at: 36864, length: 512 }),
      'unsupported',
      'dmg: the chunk at guest offset 36864 has unknown type 9, which is not supported',
    );
  });

  test('guest ranges without a chunk', async () => {
    const node = await open(image([rawChunk], { sectors: 70 }));
    expect((await extentsOf(node)).map((extent) => extent.length)).toEqual([32768, 3072]);
    await expectError(contentOf(node), 'corrupt', 'dmg: no chunk holds guest offset 32768');
  });

  test('chunks beyond the end of the file and raw chunks that are too short', async () => {
    const beyond = await open(image([{ ...zlibChunk, override: { dataOffset: 1n << 40n } }]));
    await expectError(contentOf(beyond), 'corrupt', 'lies beyond the end of the file');
    const short = await open(image([{ ...rawChunk, stored: text.subarray(0, 600) }]));
    await expectError(contentOf(short), 'corrupt', 'is shorter than its sectors');
  });

  test('damaged and incomplete streams', async () => {
    const stored = deflateSync(text);
    stored[40]! ^= 0xff;
    await expectError(
      contentOf(await open(image([{ ...zlibChunk, stored }]))),
      'corrupt',
      /^Could not unpack/,
    );
    const shorter = deflateSync(text.subarray(0, 1000));
    await expectError(
      contentOf(await open(image([{ ...zlibChunk, stored: shorter }]))),
      'corrupt',
      'the stream is too short',
    );
  });
});

describe('dmg: what is refused on opening', () => {
  const refuse = (spec: ImageSpec, errorKind: ErrorKind, message: string | RegExp) =>
    expectError(open(spec), errorKind, message);

  test("sector counts and lengths beyond QEMU's limits, in its words", async () => {
    await refuse(
      image([rawChunk, { ...zlibChunk, override: { sectorCount: 131073n } }]),
      'limit',
      'sector count 131073 for chunk 1 is larger than max (131072)',
    );
    await refuse(
      image([{ ...zlibChunk, override: { dataLength: 67108865n } }]),
      'limit',
      'length 67108865 for chunk 0 is larger than max (67108864)',
    );
  });

  test('chunks that overlap', () =>
    refuse(image([rawChunk, { ...rawChunk, override: { sector: 63n } }]), 'corrupt', 'chunks overlap'));

  test('files that are no dmg', async () => {
    await expectError(
      dmg.open(memoryContext(new Uint8Array(5000))),
      'corrupt',
      'Could not locate UDIF trailer in dmg file',
    );
    await expectError(
      dmg.open(memoryContext(new Uint8Array(0))),
      'corrupt',
      'dmg file must be at least 512 bytes long',
    );
  });

  test('trailers that point outside of the file', async () => {
    for (const field of [
      'dataForkOffset',
      'resourceForkOffset',
      'resourceForkLength',
      'xmlOffset',
      'xmlLength',
    ] as const) {
      for (const value of [1n << 20n, 1n << 62n, (1n << 64n) - 1n]) {
        const { bytes, koly } = buildDmg(image([rawChunk]));
        new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(koly + kind.KOLY.offsetOf(field), value);
        await expect(dmg.open(memoryContext(bytes)), `${field} = ${value}`).rejects.toMatchObject({
          name: 'ImageError',
        });
      }
    }
  });

  test('images without tables, of absurd size, with broken property lists', async () => {
    const { bytes, koly, tables } = buildDmg(image([rawChunk]));
    const damaged = (change: (copy: Buffer) => void) => {
      const copy = Buffer.from(bytes);
      change(copy);
      return dmg.open(memoryContext(copy));
    };
    const at = (field: Parameters<typeof kind.KOLY.offsetOf>[0]) => koly + kind.KOLY.offsetOf(field);
    await expectError(
      damaged((copy) => copy.writeBigUInt64BE(0n, at('xmlLength'))),
      'corrupt',
      'no resource fork and no property list',
    );
    await expectError(
      damaged((copy) => copy.writeBigUInt64BE(1n << 50n, at('sectorCount'))),
      'limit',
      'Image size is too large',
    );
    await expectError(
      damaged((copy) => copy.write('</dada>', copy.lastIndexOf('</data>'))),
      'corrupt',
      'the property list is malformed',
    );
    const node = await damaged((copy) => copy.write('<dada>', copy.indexOf('<data>', tables)));
    await expectError(contentOf(node), 'corrupt', 'no chunk holds guest offset 0');
  });

  test('opening for writing', () =>
    expectError(
      dmg.open(memoryContext(buildDmg(image([rawChunk])).bytes, { writable: true })),
      'read-only',
      'Image is read-only',
    ));
});

test('dmg: probing goes by the name alone', () => {
  const head = new Uint8Array(2048);
  expect(dmg.probe(head, 'disk.dmg', 10_000)).toBe(2);
  expect(dmg.probe(head, '.dmg', 10_000)).toBe(0);
  expect(dmg.probe(head, 'disk.img', 10_000)).toBe(0);
});

const sample = join(import.meta.dirname, '../../../shared/corpus/simple-dmg.dmg.bz2');
if (!existsSync(sample)) process.stderr.write('\nSKIPPED (no ../shared/corpus): the published sample dmg\n');
test.skipIf(!existsSync(sample))("dmg: QEMU's sample image has the content that it should have", async () => {
  const file = new Uint8Array(19479);
  decodeBzip2(readFileSync(sample), file);
  const node = await dmg.open(memoryContext(file));
  expect(node.size).toBe(1_799_168);
  for (const piece of [node.size, 65_536, 512 * 333]) {
    const hash = createHash('sha256').update(await contentOf(node, piece));
    expect(hash.digest('hex')).toBe('20647e0a98a830a6a250b91e0e6d7200a872caea07b87a3c19611f3dd031c9df');
  }
});
