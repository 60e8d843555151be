/** Bochs "growing" images, made by hand. */
import { expect, it } from 'vitest';
import { bochs } from '../../src/engine/formats/bochs/index.js';
import { Header } from '../../src/engine/formats/bochs/layout.js';
import { contentOf, extentsOf, memoryContext } from '../support/open-memory.js';
import { bochsImage, EXTENT } from './bochs-image.js';

const data = (salt: number) =>
  Uint8Array.from({ length: EXTENT }, (_, at) => (at + salt + (at >>> 9)) & 0xff);
const extents = new Map([
  [4, { data: data(1) }],
  [1, { data: data(2), bitmap: Uint8Array.of(0b00000101) }],
]);
const open = (image: Uint8Array) => bochs.open(memoryContext(image));

it.each([false, true])('reads extents by their bitmaps (version 1: %s)', async (version1) => {
  const image = bochsImage({ size: 6 * EXTENT - 512, extents, version1 });
  expect(bochs.probe(image, 'x', image.length)).toBe(100);
  const node = await open(image);
  expect(node.size).toBe(6 * EXTENT - 512);
  const expected = Buffer.alloc(6 * EXTENT - 512);
  expected.set(data(1), 4 * EXTENT);
  for (const sector of [0, 2]) {
    expected.set(data(2).subarray(sector * 512, sector * 512 + 512), EXTENT + sector * 512);
  }
  expect((await contentOf(node, 1000)).equals(expected)).toBe(true);
  expect((await extentsOf(node)).map(({ kind }) => kind)).toEqual([
    ...['zero', 'data', 'zero', 'data', 'zero'],
    ...['zero', 'data', 'zero'],
  ]);
});

it('reads zeros where the file has ended', async () => {
  const image = bochsImage({ size: 6 * EXTENT, extents });
  const node = await open(image.subarray(0, 512 + 24 + 512 + 1000));
  const content = await contentOf(node);
  expect(content.subarray(4 * EXTENT, 4 * EXTENT + 1000).equals(data(1).subarray(0, 1000))).toBe(true);
  expect(content.subarray(4 * EXTENT + 1000).every((byte) => byte === 0)).toBe(true);
  expect(content.subarray(0, 4 * EXTENT).every((byte) => byte === 0)).toBe(true);
});

const field = (name: 'catalog' | 'extent' | 'version', value: number) => () => {
  const image = bochsImage({ size: 6 * EXTENT });
  image.writeUInt32LE(value, Header.offsetOf(name));
  return image;
};

it.each([
  ['an empty file', () => new Uint8Array(0), 'Image not in Bochs format'],
  ['another version', field('version', 0x30000), 'Image not in Bochs format'],
  ['a large catalog', field('catalog', 0x100001), 'Catalog size is too large'],
  ['a small catalog', field('catalog', 5), 'Catalog size is too small for this disk size'],
  ['no extents', field('extent', 0), 'Extent size must be at least 512'],
  ['odd extents', field('extent', 768), 'Extent size 768 is not a power of two'],
  ['large extents', field('extent', 0x1000000), 'Extent size 16777216 is too large'],
])('refuses %s', async (_name, make, message) => {
  await expect(open(make())).rejects.toMatchObject({ name: 'ImageError', message });
});

it('is not written', async () => {
  const context = memoryContext(bochsImage({ size: EXTENT }), { writable: true });
  await expect(bochs.open(context)).rejects.toMatchObject({ message: 'Image is read-only' });
});
