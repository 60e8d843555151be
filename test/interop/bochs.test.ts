/** bochs against the reference: a real image, hand-made ones, error texts. */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { expect, test } from 'vitest';
import { decodeBzip2 } from '../../src/engine/codec/bzip2.js';
import { bochs } from '../../src/engine/formats/bochs/index.js';
import { golden } from '../golden/harness.js';
import { contentOf, memoryContext } from '../support/open-memory.js';
import { describeInterop } from '../support/reference.js';
import { bochsImage } from '../unit/bochs-image.js';

const corpus = resolve(import.meta.dirname, '../../../shared/corpus/empty.bochs.bz2');
test.skipIf(!existsSync(corpus))('reads a real image', async () => {
  const unpacked = Buffer.alloc(2560);
  await decodeBzip2(readFileSync(corpus), unpacked);
  expect(bochs.probe(unpacked, 'x', unpacked.length)).toBeGreaterThan(0);
  const content = await contentOf(await bochs.open(memoryContext(unpacked)));
  expect(createHash('sha256').update(content).digest('hex')).toBe(
    '85e614bc2ef17bec493b849dbeea34687ba52d7b1fedc4e5fc3729b0fb059aad',
  );
});

describeInterop('bochs: the same command lines', () => {
  const { folder, same, sameWriting } = golden();
  const write = (name: string, bytes: Uint8Array) => writeFileSync(join(folder, name), bytes);
  const sound = () => bochsImage({ size: 40_960, extents: new Map([[3, { data: Buffer.alloc(4096, 5) }]]) });
  const word = (at: number, value: number) => {
    const image = sound();
    image.writeUInt32LE(value, at);
    return image;
  };
  write('sound', sound());
  write('version', word(64, 7));
  write('catalog', word(72, 0x100001));
  write('small', word(72, 9));
  write('extent', word(80, 511));
  write('odd', word(80, 0x1800));
  write('large', word(80, 0x1000000));
  for (const name of ['sound', 'version', 'catalog', 'small', 'extent', 'odd', 'large']) {
    same(`info -f bochs --output=json ${name}`);
  }
  same('map --output=json sound');
  same('check sound');
  same('resize sound 1M');
  same('measure -O qcow2 sound');
  same('create -f bochs new 1M');
  same('convert -O bochs sound new');
  sameWriting('convert -O qcow2 sound new', 'compare sound new', 'map --output=json new');
});
