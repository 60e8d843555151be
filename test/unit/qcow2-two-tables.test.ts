/** Writes across two L2 tables while the cache has no room for both. */
import { expect, it } from 'vitest';
import { createImage, openImage } from './qcow2-support.js';

const KiB = 1024;
/** Guest bytes of one L2 table: 1024 entries of 16 bytes in a cluster of 16 KiB. */
const SPAN = 16 * KiB * 1024;

it('a write with subclusters finds its first L2 table again when the second has pushed it out of the cache', async () => {
  const made = await createImage(36 * SPAN, { extended_l2: true, cluster_size: 16 * KiB });
  const first = await openImage(made, { writable: true });
  await first.image.write(0, Buffer.alloc(512, 1));
  await first.image.close();

  const { image } = await openImage(made, { writable: true, smallCaches: true });
  // A cache of 16 tables: 15 dirty ones, that must stay, and the first one, clean.
  for (let table = 2; table < 17; table++) await image.write(table * 2 * SPAN, Buffer.alloc(512, 2));
  const data = Buffer.alloc(40 * KiB, 5);
  await image.write(SPAN - 20 * KiB, data);
  const found = Buffer.alloc(44 * KiB);
  await image.read(SPAN - 22 * KiB, found);
  expect(found.equals(Buffer.concat([Buffer.alloc(2 * KiB), data, Buffer.alloc(2 * KiB)]))).toBe(true);
  await image.close();
});
