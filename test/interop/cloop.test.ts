/** cloop against the reference: a real image, hand-made ones, error texts. */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { expect, test } from 'vitest';
import { decodeBzip2 } from '../../src/engine/codec/bzip2.js';
import { cloop } from '../../src/engine/formats/cloop/index.js';
import { golden } from '../golden/harness.js';
import { contentOf, memoryContext } from '../support/open-memory.js';
import { describeInterop } from '../support/reference.js';
import { cloopImage } from '../unit/cloop-image.js';

const corpus = resolve(import.meta.dirname, '../../../shared/corpus/simple-pattern.cloop.bz2');
test.skipIf(!existsSync(corpus))('reads a real image', async () => {
  const unpacked = Buffer.alloc(1690);
  await decodeBzip2(readFileSync(corpus), unpacked);
  expect(cloop.probe(unpacked, 'x', unpacked.length)).toBeGreaterThan(0);
  const content = await contentOf(await cloop.open(memoryContext(unpacked)));
  expect(createHash('sha256').update(content).digest('hex')).toBe(
    '7c77af2771e0f86b7ec9707374c7416037fedae45cb0e6e27fbdf55688a5dd12',
  );
});

describeInterop('cloop: the same command lines', () => {
  const { folder, same, sameWriting } = golden();
  const write = (name: string, bytes: Uint8Array) => writeFileSync(join(folder, name), bytes);
  const guest = Buffer.from(Uint8Array.from({ length: 40_960 }, (_, at) => (at >>> 9) & 0xff));
  const word = (at: number, value: number) => {
    const image = cloopImage(guest, 4096);
    image.writeUInt32BE(value, at);
    return image;
  };
  write('sound', cloopImage(guest, 4096));
  write('none', word(128, 0));
  write('odd', word(128, 513));
  write('large', word(128, 0x4000200));
  write('many', word(132, 0x20000000));
  write('table', word(132, 0x4000000));
  write('back', word(140, 0x7fff));
  write('far', word(144, 0x7fff));
  write('noise', Buffer.from(cloopImage(guest, 4096)).fill(0x55, 136 + 88, 136 + 96));
  for (const name of ['sound', 'none', 'odd', 'large', 'many', 'table', 'back', 'far']) {
    same(`info -f cloop --output=json ${name}`);
  }
  same('map --output=json sound');
  same('check sound');
  same('resize sound 1M');
  same('measure -O qcow2 sound');
  same('create -f cloop new 1M');
  sameWriting('convert -O qcow2 sound new', 'compare sound new', 'map --output=json new');
  sameWriting('convert -O raw noise new');
});
