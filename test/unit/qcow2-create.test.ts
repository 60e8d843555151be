/** Creating qcow2 images: layout and refusals as the reference's. */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { createOptions } from '../../src/engine/formats/qcow2/options.js';
import type { OptionValue, OptionValues } from '../../src/engine/node/option-table.js';
import { describeInterop, tempDir } from '../support/reference.js';
import { checkReport, createImage, dump, qemuImg } from './qcow2-support.js';

const MiB = 1 << 20;

function asText(options: OptionValues): string {
  return Object.entries(options)
    .map(([name, value]) => `${name}=${value === true ? 'on' : value === false ? 'off' : value}`)
    .join(',');
}

/** A header's bytes and the first sectors of the tables are what the reference writes; lengths are equal. */
const same: readonly (readonly [OptionValues, number])[] = [
  [{}, MiB],
  [{}, 0],
  [{}, 1000],
  [{}, 3 * 1024 * MiB],
  [{}, 10 * 1024 * 1024 * MiB],
  [{ compat: '0.10' }, MiB],
  [{ compat: 'v2' }, 5 * 1024 * 1024 * MiB],
  [{ compat: '1.1', lazy_refcounts: true }, MiB],
  [{ cluster_size: 512 }, MiB],
  [{ cluster_size: 512, refcount_bits: 2 }, MiB],
  [{ cluster_size: 1024 }, 20 * MiB],
  [{ cluster_size: 4096, compression_type: 'zstd' }, 20 * MiB],
  [{ cluster_size: 2 * MiB }, 20 * MiB],
  [{ refcount_bits: 1 }, 5 * 1024 * 1024 * MiB],
  [{ refcount_bits: 64 }, MiB],
  [{ extended_l2: true }, 64 * MiB],
  [{ extended_l2: true, cluster_size: 16384 }, 64 * MiB],
  [{ data_file: 'd.raw' }, MiB],
  [{ data_file: 'd.raw', data_file_raw: true }, MiB],
  [{ preallocation: 'metadata' }, MiB],
  [{ preallocation: 'metadata' }, 100000],
  [{ preallocation: 'metadata', extended_l2: true }, MiB],
  [{ preallocation: 'falloc' }, 8 * MiB],
  [{ preallocation: 'full' }, 8 * MiB],
  [{ preallocation: 'metadata', compat: '0.10' }, 8 * MiB],
  [{ preallocation: 'metadata', refcount_bits: 64 }, 8 * MiB],
  [{ preallocation: 'full', data_file: 'd.raw' }, MiB],
];

/** The reference refuses, in these words. */
const refused: readonly OptionValues[] = [
  { compat: '2' },
  { cluster_size: 1000 },
  { cluster_size: 256 },
  { cluster_size: 4 * MiB },
  { cluster_size: 0 },
  { refcount_bits: 3 },
  { refcount_bits: 0 },
  { refcount_bits: 128 },
  { compat: '0.10', refcount_bits: 1 },
  { compat: '0.10', lazy_refcounts: true },
  { compat: '0.10', compression_type: 'zstd' },
  { compat: '0.10', extended_l2: true },
  { compat: '0.10', data_file: 'd.raw' },
  { data_file_raw: true },
  { extended_l2: true, cluster_size: 8192 },
  { preallocation: 'foo' },
  { compression_type: 'foo' },
  { preallocation: 'metadata', backing_file: 'b.raw', backing_fmt: 'raw' },
  { data_file: 'd.raw', data_file_raw: true, backing_file: 'b.raw', backing_fmt: 'raw' },
  { encryption: true },
  { 'encrypt.format': 'luks' },
  { 'encrypt.cipher-alg': 'foo' },
  { encryption: true, 'encrypt.format': 'luks' },
  { backing_fmt: 'raw' },
];

describeInterop('qcow2: images created here and by the reference', () => {
  const folder = tempDir();
  const theirs = join(folder, 'theirs.qcow2');
  qemuImg('create', '-q', '-f', 'raw', join(folder, 'b.raw'), '1M');
  // data file names are recorded as given, and are relative to where the reference runs
  const create = (options: OptionValues, size: number) => {
    const absolute = Object.fromEntries(
      Object.entries(options).map(([name, value]): [string, OptionValue | undefined] => [
        name,
        name === 'data_file' || name === 'backing_file' ? join(folder, String(value)) : value,
      ]),
    );
    rmSync(theirs, { force: true });
    const text = asText(absolute);
    const args = text === '' ? [] : ['-o', text];
    return { done: qemuImg('create', '-q', '-f', 'qcow2', ...args, theirs, String(size)), absolute };
  };

  for (const [options, size] of same) {
    it(`same layout: ${asText(options) || 'defaults'} at ${size} bytes`, async () => {
      const { done, absolute } = create(options, size);
      expect(done.stderr).toBe('');
      const expected = readFileSync(theirs);
      const made = await createImage(size, absolute);
      expect(made.file.size).toBe(expected.byteLength);
      // For these two the reference places its refcount structure elsewhere.
      if (absolute.preallocation === 'falloc' || (absolute.preallocation === 'full' && !made.dataFile))
        return;
      const ours = Buffer.from(made.file.bytes());
      let at = 0;
      while (at < ours.length && ours[at] === expected[at]) at++;
      expect(at, 'first byte that differs').toBe(ours.length);
      if (made.dataFile === undefined) {
        const path = dump(made, folder);
        expect(checkReport(path)).toBe('');
      }
    });
  }

  for (const options of refused) {
    it(`refused alike: ${asText(options)}`, async () => {
      const { done, absolute } = create(options, MiB);
      expect(done.status).toBe(1);
      const message = done.stderr.trim().split('\n')[0]!.replace(`qemu-img: ${theirs}: `, '');
      await expect(createImage(MiB, absolute)).rejects.toThrow(message);
    });
  }

  it('an image that is too large is refused in the same words', async () => {
    const { done } = create({ cluster_size: 512 }, 200 * 1024 * MiB);
    const message = done.stderr.trim().replace(`qemu-img: ${theirs}: `, '');
    await expect(createImage(200 * 1024 * MiB, { cluster_size: 512 })).rejects.toThrow(message);
  });

  it('a backing file name that has no room is refused in the same words', async () => {
    const long = `${'./'.repeat(220)}${join(folder, 'b.raw')}`.replace('.//', './/');
    const options = { cluster_size: 512, backing_file: `/${long}`, backing_fmt: 'raw' };
    const { done } = create(options, MiB);
    expect(done.status).toBe(1);
    await expect(createImage(MiB, options)).rejects.toThrow('No space left on device');
  });

  it('the option table lists what the reference lists', () => {
    const help = qemuImg('create', '-f', 'qcow2', '-o', 'help').stdout.split('\n');
    const types = { string: 'str', bool: 'bool (on/off)', number: 'num', size: 'size' } as const;
    const lines = createOptions.map(
      ({ name, type, help: text }) => `  ${`${name}=<${types[type]}>`.padEnd(22)} - ${text}`,
    );
    expect(help.filter((line) => line.startsWith('  '))).toEqual(lines.sort());
  });

  it('the Formatting line has the options in the same order', () => {
    const given: Record<string, string> = {
      compat: 'v3',
      preallocation: 'off',
      backing_file: join(folder, 'b.raw'),
      backing_fmt: 'raw',
      data_file: join(folder, 'd.raw'),
      data_file_raw: 'off',
    };
    const text = Object.entries(given)
      .map(([k, v]) => `${k}=${v}`)
      .join(',');
    const { stdout } = qemuImg('create', '-f', 'qcow2', '-o', text, theirs, '1M');
    const order = [...stdout.matchAll(/ ([a-z_]+)=/g)].map((m) => m[1]!).filter((name) => name !== 'fmt');
    expect(createOptions.map((o) => o.name).filter((name) => order.includes(name))).toEqual(order);
  });
});
