/** Writers that meet in one cluster, at different subclusters of it. */
import { expect, it } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { createImage, openImage } from './qcow2-support.js';

const KiB = 1024;
const CLUSTER = 64 * KiB;

async function withCompressed() {
  const made = await createImage(4 * CLUSTER, { extended_l2: true, cluster_size: CLUSTER });
  const { image, node } = await openImage(made, { writable: true });
  for (let at = 0; at < image.size; at += CLUSTER) {
    const packed = await node.pack!.compress(Buffer.alloc(CLUSTER, 7));
    await image.writePacked(at, packed!);
  }
  return { image, node };
}

it('two writers to different subclusters of a compressed cluster do not lose each other', async () => {
  const { image } = await withCompressed();
  const expected = Buffer.alloc(4 * CLUSTER, 7);
  const writes = [
    { at: 0, length: 2 * KiB, byte: 1 },
    { at: 40 * KiB, length: 512, byte: 2 },
    // Over an edge of clusters, and into the middle of the one after.
    { at: CLUSTER + 60 * KiB, length: 8 * KiB, byte: 3 },
    { at: CLUSTER + 8 * KiB, length: 2 * KiB, byte: 4 },
    { at: 2 * CLUSTER + 32 * KiB, length: 3 * KiB, byte: 5 },
  ];
  for (const { at, length, byte } of writes) expected.fill(byte, at, at + length);
  expected.fill(0, 48 * KiB, 52 * KiB);
  await Promise.all([
    ...writes.map(({ at, length, byte }) => image.write(at, Buffer.alloc(length, byte))),
    image.zero({ at: 48 * KiB, length: 4 * KiB }),
  ]);
  const found = Buffer.alloc(expected.byteLength);
  await image.read(0, found);
  expect(found.equals(expected)).toBe(true);
  await image.close();
});

it('a cluster is free for other writers when linking it has failed', async () => {
  const made = await createImage(4 * CLUSTER, { extended_l2: true, cluster_size: CLUSTER });
  const { image, node } = await openImage(made, { writable: true });
  const { tables } = node.writeParts;
  const target = await node.prepareWrite({ at: 0, length: 512 });
  tables.writable = () => {
    throw new ImageError('io', 'Input/output error');
  };
  await expect((async () => target.commit!())()).rejects.toThrow('Input/output error');
  // The class's own again.
  Reflect.deleteProperty(tables, 'writable');
  await image.write(32 * KiB, Buffer.alloc(512, 1));
  await image.close();
}, 5000);
