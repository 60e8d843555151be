import { deflateSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { dmg } from '../../src/engine/formats/dmg/index.js';
import * as kind from '../../src/engine/formats/dmg/layout.js';
import { adcCompress, lzfseStream, lzvnBlock, rawBlock, sampleText } from '../support/codec-streams.js';
import { bzip2Pattern, lzfseText } from '../support/codec-vectors.js';
import { buildDmg, type ChunkSpec, type ImageSpec } from '../support/dmg-image.js';
import { fuzz, fuzzTimeout } from './harness.js';
import { type Field, fieldsOf, type Seed, type SeedFile } from './seed.js';

const text = sampleText(8 * 512);
const chunks: readonly ChunkSpec[] = [
  { kind: kind.ZLIB, sectors: 8, stored: deflateSync(text) },
  { kind: kind.ZERO, sectors: 100 },
  { kind: kind.COMMENT, sectors: 0 },
  { kind: kind.ADC, sectors: 8, stored: adcCompress(text) },
  {
    kind: kind.LZFSE,
    sectors: 8,
    stored: lzfseStream(lzvnBlock(text.subarray(0, 3000)), rawBlock(text.subarray(3000))),
  },
  // A real block, filled up to whole sectors.
  {
    kind: kind.LZFSE,
    sectors: 12,
    stored: lzfseStream(lzfseText.subarray(0, -4), rawBlock(text.subarray(0, 144))),
  },
  { kind: kind.BZIP2, sectors: 500, stored: bzip2Pattern },
  { kind: kind.IGNORE, sectors: 3 },
  { kind: kind.RAW, sectors: 8, stored: text },
];
const sectors = chunks.reduce((sum, chunk) => sum + chunk.sectors, 0);
const spec: ImageSpec = {
  sectors: 2 * sectors,
  partitions: [
    { firstSector: sectors, chunks },
    { firstSector: 0, chunks },
  ],
};

function chunkTables(bytes: Uint8Array): { fields: Field[]; ends: number[] } {
  const fields: Field[] = [];
  const ends: number[] = [];
  const buffer = Buffer.from(bytes);
  for (let at = buffer.indexOf('mish'); at >= 0; at = buffer.indexOf('mish', at + 4)) {
    fields.push(...fieldsOf('mish', kind.MISH, at, false));
    const count = buffer.readUInt32BE(at + kind.MISH.offsetOf('chunkCount'));
    for (let i = 0; i < count; i++) {
      fields.push(...fieldsOf(`chunk${i}`, kind.CHUNK, at + kind.MISH.size + i * kind.CHUNK.size, false));
    }
    ends.push(at + kind.MISH.size + count * kind.CHUNK.size);
  }
  return { fields, ends };
}

/** Tables in a resource fork stand in the file as they are. */
function forkSeed(): Seed {
  const { bytes, koly, tables } = buildDmg({ ...spec, place: 'resource-fork' });
  const fields = [
    ...fieldsOf('koly', kind.KOLY, koly, false),
    ...fieldsOf('fork', kind.RESOURCE_FORK, tables, false),
    ...chunkTables(bytes).fields,
  ];
  return { name: 'resource-fork', files: [{ name: 'image', bytes, fields, tables: [], texts: [] }] };
}

/** Tables in a property list: as text, and as the bytes that the text stands for. */
function listSeeds(): Seed[] {
  const { bytes, koly, tables } = buildDmg(spec);
  const xml = bytes.subarray(tables, koly);
  const plain: SeedFile = {
    name: 'image',
    bytes,
    fields: fieldsOf('koly', kind.KOLY, koly, false),
    tables: [],
    texts: [{ at: tables, length: xml.length, fixed: true }],
  };
  const text = Buffer.from(xml).toString('latin1');
  const lists = [...text.matchAll(/<data>([^<]*)<\/data>/g)].map((match) => Buffer.from(match[1]!, 'base64'));
  const decoded = Buffer.concat(lists);
  const { fields, ends } = chunkTables(decoded);
  const inner: SeedFile = {
    name: 'image',
    bytes: decoded,
    fields,
    tables: [],
    texts: [],
    assemble: (parts) => {
      const split = ends[0]!;
      const list = [parts.subarray(0, split), parts.subarray(split)]
        .map((part) => `<data>${Buffer.from(part).toString('base64')}</data>`)
        .join('\n');
      const trailer = Buffer.from(bytes.subarray(koly));
      trailer.writeBigUInt64BE(BigInt(list.length), kind.KOLY.offsetOf('xmlLength'));
      return Buffer.concat([bytes.subarray(0, tables), Buffer.from(list), trailer]);
    },
  };
  return [
    { name: 'property list', files: [plain] },
    { name: 'tables of a property list', files: [inner] },
  ];
}

test('dmg: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(dmg, [forkSeed(), ...listSeeds()], 300);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
