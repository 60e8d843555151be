/** Growing and shrinking qcow2 images. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { describeInterop, tempDir } from '../support/reference.js';
import { checkReport, createImage, dump, openImage, qemuImg, readAll, stamp } from './qcow2-support.js';

const MiB = 1 << 20;
const variants: readonly OptionValues[] = [
  {},
  { compat: '0.10' },
  { cluster_size: 512 },
  { cluster_size: 512, refcount_bits: 64 },
  { extended_l2: true },
  { data_file: 'resized.raw' },
];

async function resized(
  options: OptionValues,
  sizes: readonly number[],
  preallocation: 'off' | 'metadata' = 'off',
) {
  const first = sizes[0]!;
  const made = await createImage(first, options);
  let content = stamp(0, first, 5);
  const { image, node } = await openImage(made, { writable: true });
  await image.write(0, content);
  for (const size of sizes.slice(1)) {
    await node.resize(size, { preallocation: size > content.length ? preallocation : 'off' });
    expect(image.size).toBe(size);
    const next = new Uint8Array(size);
    next.set(content.subarray(0, Math.min(size, content.length)));
    content = next;
    const at = Math.max(0, size - 70000);
    const tail = stamp(at, size - at, 6);
    await image.write(at, tail);
    content.set(tail, at);
    expect(Buffer.compare(await readAll(image), content)).toBe(0);
  }
  await image.close();
  return { made, content };
}

describe('qcow2: resize', () => {
  it('what cannot be is refused', async () => {
    const made = await createImage(MiB);
    const { node } = await openImage(made, { writable: true });
    await expect(node.resize(1000, { preallocation: 'off' })).rejects.toThrow('multiple of 512');
    await expect(node.resize(512, { preallocation: 'full' })).rejects.toThrow(
      "Preallocation can't be used for shrinking an image",
    );
    await expect(node.resize(2 ** 52, { preallocation: 'off' })).rejects.toThrow(
      'Failed to grow the L1 table',
    );
  });
});

describeInterop('qcow2: resized images are accepted by the reference', () => {
  const folder = tempDir();
  for (const options of variants) {
    for (const preallocation of ['off', 'metadata'] as const) {
      it(`${JSON.stringify(options)}, preallocation ${preallocation}`, async () => {
        const sizes = [3 * MiB, 3 * MiB + 1024, 9 * MiB, 2 * MiB + 512, 512, 4 * MiB];
        const { made, content } = await resized(options, sizes, preallocation);
        const path = dump(made, folder);
        expect(checkReport(path)).toBe('');
        if (options.data_file !== undefined) return;
        const out = join(folder, 'out.raw');
        expect(qemuImg('convert', '-f', 'qcow2', '-O', 'raw', path, out).stderr).toBe('');
        expect(Buffer.compare(readFileSync(out), content)).toBe(0);
      });
    }
  }
});
