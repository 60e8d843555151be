/** Hand-made dmg images as the reference reads them. It is often built without bzip2 and LZFSE, and never has ADC. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { deflateSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { dmg } from '../../src/engine/formats/dmg/index.js';
import { BZIP2, IGNORE, LZFSE, RAW, ZERO, ZLIB } from '../../src/engine/formats/dmg/layout.js';
import { lzfseStream, lzvnBlock, sampleText } from '../support/codec-streams.js';
import { bzip2Pattern } from '../support/codec-vectors.js';
import { buildDmg, type ChunkSpec, type ImageSpec } from '../support/dmg-image.js';
import { contentOf, memoryContext } from '../support/open-memory.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';

/** A reproducible sequence of numbers below 2^32. */
function generator(seed: number) {
  let state = seed;
  return (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** Chunks of the kinds given, each sector stamped with its number. */
function randomImage(seed: number, kinds: readonly number[]): ImageSpec {
  const random = generator(seed);
  const partitions = [];
  let sector = 0;
  for (let partition = 0; partition < 3; partition++) {
    const firstSector = sector;
    const chunks: ChunkSpec[] = [];
    for (let i = 0; i < 20; i++) {
      const kind = kinds[random(kinds.length)]!;
      const sectors = 1 + random(200);
      const data = Buffer.from(sampleText(sectors * 512));
      for (let s = 0; s < sectors; s++) data.writeUInt32BE(sector + s, s * 512);
      const stored =
        kind === ZLIB
          ? deflateSync(data)
          : kind === RAW
            ? data
            : kind === LZFSE
              ? lzfseStream(lzvnBlock(data))
              : undefined;
      chunks.push({ kind, sectors, ...(stored === undefined ? {} : { stored }) });
      sector += sectors;
    }
    partitions.push({ firstSector, chunks });
  }
  return {
    sectors: sector,
    partitions,
    place: seed % 2 === 0 ? 'xml' : 'resource-fork',
    lead: seed % 3 === 0 ? 700 : 0,
  };
}

describeInterop('dmg: the reference reads the same', () => {
  const folder = tempDir();
  let number = 0;

  /** Our content and the reference's; undefined where the reference was built without a decompressor. */
  async function both(spec: ImageSpec): Promise<{ ours: Buffer; theirs: Buffer | undefined }> {
    const path = join(folder, `${number++}.dmg`);
    const { bytes } = buildDmg(spec);
    writeFileSync(path, bytes);
    const node = await dmg.open(memoryContext(bytes));
    const ours = await contentOf(node, 100_000);
    const done = run(reference.qemuImg!, ['convert', '-f', 'dmg', '-O', 'raw', path, `${path}.raw`]);
    if (done.status !== 0 && done.stderr.includes('module is missing')) return { ours, theirs: undefined };
    expect(done.stderr).toBe('');
    return { ours, theirs: readFileSync(`${path}.raw`) };
  }

  for (const seed of [1, 2, 3, 4, 5, 6]) {
    test(`raw, zlib and zero chunks, seed ${seed}`, async () => {
      const { ours, theirs } = await both(randomImage(seed, [ZLIB, RAW, ZERO, IGNORE]));
      expect(theirs?.equals(ours)).toBe(true);
    });
  }

  const optional: readonly (readonly [string, ImageSpec])[] = [
    [
      'bzip2',
      {
        sectors: 500,
        partitions: [{ firstSector: 0, chunks: [{ kind: BZIP2, sectors: 500, stored: bzip2Pattern }] }],
      },
    ],
    ['LZFSE', randomImage(8, [LZFSE, ZERO])],
  ];
  for (const [name, spec] of optional) {
    test(`${name} chunks, where the reference was built with it`, async ({ skip }) => {
      const { ours, theirs } = await both(spec);
      if (theirs === undefined) skip(`the reference was built without ${name}`);
      expect(theirs?.equals(ours)).toBe(true);
    });
  }

  test('the same images are refused, limits in the same words', async () => {
    const bad: readonly ImageSpec[] = [
      {
        sectors: 8,
        partitions: [
          { firstSector: 0, chunks: [{ kind: ZLIB, sectors: 8, override: { sectorCount: 131073n } }] },
        ],
      },
      {
        sectors: 8,
        partitions: [
          { firstSector: 0, chunks: [{ kind: RAW, sectors: 8, override: { dataLength: 1n << 27n } }] },
        ],
      },
    ];
    for (const spec of bad) {
      const path = join(folder, `${number++}.dmg`);
      const { bytes } = buildDmg(spec);
      writeFileSync(path, bytes);
      const error = await dmg.open(memoryContext(bytes)).then(
        () => undefined,
        (thrown: Error) => thrown,
      );
      const theirs = run(reference.qemuImg!, ['info', path]);
      expect(theirs.status).toBe(1);
      expect(theirs.stderr.split('\n')[0]).toBe(`qemu-img: ${error?.message}`);
    }
  });
});
