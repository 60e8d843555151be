/** Amending images whose refcounts lie. */
import { expect, it } from 'vitest';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { createImage, openImage } from './qcow2-support.js';

const MiB = 1024 * 1024;

it('new refcounts for an image whose table names no block that there is: ends, with or without success', async () => {
  for (const at of [0n, 4n << 40n, 1n << 30n]) {
    const made = await createImage(3 * MiB, { cluster_size: 4096 });
    const { image } = await openImage(made, { writable: true });
    await image.write(0, new Uint8Array(MiB).fill(7));
    await image.close();
    const bytes = new Uint8Array(made.file.bytes());
    const view = new DataView(bytes.buffer);
    const table = Number(view.getBigUint64(48));
    view.setBigUint64(table, at);
    const damaged = new MemoryStorage(bytes, { writable: true, filename: 'damaged.qcow2' });
    const opened = await openImage({ file: damaged }, { writable: true });
    const outcome = await opened.image.format
      .amender!.amend(
        { refcount_bits: 64 },
        {
          signal: new AbortController().signal,
          pace: () => undefined,
          resize: async () => {},
          progress: () => {},
        },
      )
      .then(
        () => 'amended',
        (error: Error) => error.message,
      );
    expect(outcome).toMatch(/^(amended|Input\/output error|No medium found)/);
    await opened.image.close().catch(() => {});
    const { image: again } = await openImage({ file: damaged });
    const read = new Uint8Array(MiB);
    await again.read(0, read);
    expect(read.every((byte) => byte === 7)).toBe(true);
    await again.close();
  }
});
