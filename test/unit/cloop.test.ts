/** Compressed loop images, made by hand. */
import { deflateSync } from 'node:zlib';
import { expect, it } from 'vitest';
import { cloop } from '../../src/engine/formats/cloop/index.js';
import { contentOf, memoryContext } from '../support/open-memory.js';
import { cloopImage } from './cloop-image.js';

const guest = Buffer.from(Uint8Array.from({ length: 40_960 }, (_, at) => (at >>> 5) & 0xff));
const open = (image: Uint8Array) => cloop.open(memoryContext(image));

it.each([512, 1536, 4096, 65536])('reads blocks of %i bytes', async (blockSize) => {
  const image = cloopImage(guest, blockSize);
  expect(cloop.probe(image, 'x', image.length)).toBe(2);
  const node = await open(image);
  expect(node.size).toBe(Math.ceil(guest.length / blockSize) * blockSize);
  const content = await contentOf(node, 1000);
  expect(content.subarray(0, guest.length).equals(guest)).toBe(true);
});

it('reads many blocks at once', async () => {
  const node = await open(cloopImage(guest, 512));
  const parts = await Promise.all(
    Array.from({ length: 80 }, async (_, i) => {
      const extent = await node.map({ at: i * 512, length: 512 });
      const into = Buffer.alloc(512);
      if (extent.kind === 'packed') await extent.read(into);
      return into;
    }),
  );
  expect(Buffer.concat(parts).equals(guest)).toBe(true);
});

it.each([
  ['a stream that is short', deflateSync(guest.subarray(0, 4095))],
  ['a stream that is long', deflateSync(guest.subarray(0, 4097))],
  ['a stream that is cut off', deflateSync(guest.subarray(0, 4096)).subarray(0, -3)],
  ['no stream', new Uint8Array(0)],
  ['noise', Buffer.alloc(50, 0x55)],
])('fails to read %s, and reads its neighbour', async (_name, bad) => {
  const good = deflateSync(guest.subarray(0, 4096));
  const node = await open(cloopImage(guest.subarray(0, 8192), 4096, [bad, good]));
  await expect(contentOf(node, 512, { at: 0, length: 512 })).rejects.toMatchObject({
    message: 'Input/output error',
    kind: 'corrupt',
  });
  const content = await contentOf(node, 4096, { at: 4096, length: 4096 });
  expect(content.equals(guest.subarray(0, 4096))).toBe(true);
});

const word = (at: number, value: number) => () => {
  const image = cloopImage(guest, 4096);
  image.writeUInt32BE(value >>> 0, at);
  return image;
};

it.each([
  ['an empty file', () => new Uint8Array(0), 'block_size cannot be zero'],
  ['an odd block size', word(128, 513), 'block_size 513 must be a multiple of 512'],
  ['a large block size', word(128, 2 ** 26 + 512), 'block_size 67109376 must be 64 MB or less'],
  ['very many blocks', word(132, 0x20000000), 'n_blocks 536870912 must be 536870911 or less'],
  ['many blocks', word(132, 0x1fffffff), 'Could not allocate offsets table'],
  ['a large table', word(132, 0x4000000), 'image requires too many offsets, try increasing block size'],
  [
    'offsets that decrease',
    word(136 + 8 * 3 + 4, 0),
    'offsets not monotonically increasing at index 3, image file is corrupt',
  ],
  [
    'offsets far apart',
    word(136 + 8 * 3, 1),
    'invalid compressed block size at index 3, image file is corrupt',
  ],
  [
    'a table that the file ends in',
    () => cloopImage(guest, 4096).subarray(0, 160),
    'offsets not monotonically increasing at index 3, image file is corrupt',
  ],
])('refuses %s', async (_name, make, message) => {
  await expect(open(make())).rejects.toMatchObject({ name: 'ImageError', message });
});

it('opens a table of holes in little time and memory', async () => {
  const node = await open(word(132, 0x3ffffff)().subarray(0, 136));
  expect(node.size).toBe(0x3ffffff * 4096);
});

it('is not written', async () => {
  const context = memoryContext(cloopImage(guest, 4096), { writable: true });
  await expect(cloop.open(context)).rejects.toMatchObject({ message: 'Image is read-only' });
});
