/** Zeroing past the end of a file, while others write behind it. */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openFile } from '../../src/engine/storage/file.js';
import { tempDir } from '../support/reference.js';

const KiB = 1024;
const folder = tempDir();

it('growing a file by zeroing with unmap does not cut off a write behind the zeros', async () => {
  const path = join(folder, 'grow');
  const data = Buffer.alloc(64 * KiB, 7);
  for (let round = 0; round < 200; round++) {
    const file = await openFile({ path, writable: true, create: 'truncate' });
    const zeroing = () => file.zero({ at: 0, length: 64 * KiB }, { unmap: true });
    const writing = () => file.write(64 * KiB, data);
    const order = round % 2 === 0 ? [zeroing, writing] : [writing, zeroing];
    await Promise.all(order.map((start) => start()));
    const found = Buffer.alloc(128 * KiB, 1);
    await file.read(0, found);
    expect(file.size).toBe(128 * KiB);
    await file.close();
    expect(found.equals(Buffer.concat([Buffer.alloc(64 * KiB), data]))).toBe(true);
  }
});
