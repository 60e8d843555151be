/** create, info, map, check, compare and format-options on images that they make themselves. */
import { existsSync, linkSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { check } from '../../src/engine/operations/check.js';
import { compare } from '../../src/engine/operations/compare.js';
import { create, createImage } from '../../src/engine/operations/create.js';
import { formatOptions } from '../../src/engine/operations/format-options.js';
import { info } from '../../src/engine/operations/info.js';
import { map } from '../../src/engine/operations/map.js';
import { perform } from '../support/operations.js';
import { tempDir } from '../support/reference.js';

const KiB = 1024;
const MiB = 1024 * KiB;
const folder = tempDir();
const at = (name: string) => join(folder, name);
const raw = (filename: string) => ({ filename, format: 'raw' });

/** A sparse raw file with bytes at some places. */
function file(name: string, size: number, bytes: Readonly<Record<number, string>> = {}): void {
  writeFileSync(at(name), '');
  truncateSync(at(name), size);
  const content = readFileSync(at(name));
  for (const [offset, text] of Object.entries(bytes)) content.write(text, Number(offset), 'latin1');
  if (Object.keys(bytes).length > 0) writeFileSync(at(name), content);
}

const create1 = (params: Partial<Parameters<typeof create>[0]> & { filename: string }) =>
  perform(create, { format: 'raw', ...params }, folder);

describe('create', () => {
  it('says what it makes, in the order of the table', async () => {
    const done = await create1({
      filename: 'a.qcow2',
      format: 'qcow2',
      size: MiB,
      options: { lazy_refcounts: 'yes', cluster_size: '128k' },
    });
    expect(done.stdout).toBe(
      "Formatting 'a.qcow2', fmt=qcow2 cluster_size=131072 extended_l2=off compression_type=zlib size=1048576 lazy_refcounts=yes refcount_bits=16\n",
    );
    expect(done.result).toMatchObject({
      format: 'qcow2',
      size: MiB,
      options: { cluster_size: 131072, lazy_refcounts: true },
    });
  });

  it('takes typed values as well as text', async () => {
    const done = await create1({
      filename: 'typed.qcow2',
      format: 'qcow2',
      size: MiB,
      options: { lazy_refcounts: true, cluster_size: 4096 },
    });
    expect(done.stdout).toContain('cluster_size=4096 ');
    expect(done.stdout).toContain('lazy_refcounts=on ');
  });

  it('doubles commas in strings', async () => {
    const done = await create1({
      filename: 'comma.qcow2',
      format: 'qcow2',
      size: MiB,
      backing: 'a b,c',
      'backing-format': 'raw',
      'no-backing-check': true,
    });
    expect(done.stdout).toContain(' backing_file=a b,,c backing_fmt=raw ');
  });

  const refused: [string, Partial<Parameters<typeof create>[0]>, string][] = [
    ['no size', {}, 'Image creation needs a size parameter'],
    ['two sizes', { size: 1, options: { size: '1' } }, 'The image size must be specified only once'],
    ['unknown option', { size: 1, options: { x: '1' } }, "Invalid parameter 'x'"],
    ['unknown format', { size: 1, format: 'nosuch' }, "Unknown file format 'nosuch'"],
    ['no creation', { size: 1, format: 'dmg' }, "Format driver 'dmg' does not support image creation"],
    ['backing of raw', { size: 1, backing: 'b' }, "Backing file not supported for file format 'raw'"],
    [
      'backing format of raw',
      { size: 1, 'backing-format': 'raw' },
      "Backing file format not supported for file format 'raw'",
    ],
    ['preallocation', { size: 1, options: { preallocation: 'x' } }, 'invalid parameter value: x'],
    [
      'itself as backing',
      { format: 'qcow2', size: 1, backing: 'new' },
      'Error: Trying to create an image with the same filename as the backing file',
    ],
    [
      'empty backing',
      { format: 'qcow2', size: 1, backing: '' },
      'Expected backing file name, got empty string',
    ],
  ];
  for (const [what, params, text] of refused) {
    it(`refuses: ${what}`, async () => {
      const done = await create1({ filename: 'new', ...params });
      expect(done.error?.message).toBe(`new: ${text}`);
      expect(existsSync(at('new'))).toBe(false);
    });
  }

  it('takes the size from the backing file, relative to the new image, and wants its format', async () => {
    mkdirSync(at('sub'));
    file('sub/base.raw', 3 * MiB);
    const made = await create1({
      filename: 'sub/o.qcow2',
      format: 'qcow2',
      backing: 'base.raw',
      'backing-format': 'raw',
    });
    expect(made.result?.size).toBe(3 * MiB);
    const unsaid = await create1({ filename: 'sub/o2.qcow2', format: 'qcow2', backing: 'base.raw' });
    expect(unsaid.errorText).toBe(
      'qemu-img: sub/o2.qcow2: Backing file specified without backing format\nDetected format of raw.\n',
    );
    const missing = await create1({
      filename: 'sub/o3.qcow2',
      format: 'qcow2',
      backing: 'none',
      'backing-format': 'raw',
    });
    expect(missing.errorText).toBe(
      "qemu-img: sub/o3.qcow2: Could not open 'sub/none': No such file or directory\nCould not open backing image.\n",
    );
  });

  it('leaves nothing of a creation that failed', async () => {
    const done = await create1({ filename: 'half', format: 'qcow2', size: MiB, options: { compat: 'x' } });
    expect(done.error).toBeDefined();
    expect(existsSync(at('half'))).toBe(false);
  });

  it('is refused outside the roots before a file is touched', async () => {
    const policy = { roots: [at('sub')] };
    const done = await perform(create, { filename: 'out.raw', format: 'raw', size: 1 }, folder, { policy });
    expect(done.error?.kind).toBe('denied');
    expect(existsSync(at('out.raw'))).toBe(false);
  });

  it('tells convert which files were not there before, and says nothing', async () => {
    const spec = { filename: 'c.raw', format: 'raw', size: 4096 };
    const made = await perform(createImage, spec, folder);
    expect(made.result).toEqual({ path: at('c.raw'), created: [at('c.raw')], size: 4096 });
    expect(made.stdout).toBe('');
    expect((await perform(createImage, spec, folder)).result?.created).toEqual([]);
  });
});

describe('info', () => {
  it('counts raw files in sectors', async () => {
    file('odd.raw', 1000);
    const done = await perform(info, { image: raw('odd.raw') }, folder);
    expect(done.result?.images).toEqual([
      {
        filename: 'odd.raw',
        format: 'raw',
        'virtual-size': 1024,
        'actual-size': 0,
        'dirty-flag': false,
        children: [
          {
            name: 'file',
            info: {
              filename: 'odd.raw',
              format: 'file',
              'virtual-size': 1024,
              'actual-size': 0,
              'dirty-flag': false,
              'format-specific': { type: 'file', data: {} },
              children: [],
            },
          },
        ],
      },
    ]);
  });

  it('finds loops of backing files by name and by file', async () => {
    const unsafe = { format: 'qcow2', size: MiB, 'backing-format': 'qcow2', 'no-backing-check': true };
    await create1({ ...unsafe, filename: 'l1', backing: 'l2' });
    await create1({ ...unsafe, filename: 'l2', backing: 'l1' });
    const byName = await perform(info, { image: { filename: 'l1' }, 'backing-chain': true }, folder);
    expect(byName.error?.message).toBe("Backing file 'l1' creates an infinite loop.");
    // Each name is new, the file is not.
    await create1({ ...unsafe, filename: 'self', backing: './self' });
    const byFile = await perform(info, { image: { filename: 'self' }, 'backing-chain': true }, folder);
    expect(byFile.error?.message).toBe("Backing file './self' creates an infinite loop.");
    linkSync(at('self'), at('alias'));
    const linked = await perform(info, { image: { filename: 'alias' }, 'backing-chain': true }, folder);
    expect(linked.error?.message).toBe("Backing file './self' creates an infinite loop.");
  });

  it('needs no backing file where the chain is not asked for', async () => {
    const unsafe = { format: 'qcow2', size: MiB, 'backing-format': 'raw', 'no-backing-check': true };
    await create1({ ...unsafe, filename: 'orphan', backing: 'gone' });
    const alone = await perform(info, { image: { filename: 'orphan' } }, folder);
    expect(alone.result?.images[0]).toMatchObject({
      'full-backing-filename': 'gone',
      'backing-filename-format': 'raw',
    });
    const chain = await perform(info, { image: { filename: 'orphan' }, 'backing-chain': true }, folder);
    expect(chain.error?.message).toBe(
      "Could not open 'gone': Could not open 'gone': No such file or directory",
    );
  });
});

describe('map', () => {
  it('joins neighbours and streams batches', async () => {
    // 1200 pages of data with a hole between any two.
    file('comb.raw', 2400 * 4 * KiB);
    const handle = await open(at('comb.raw'), 'r+');
    for (let page = 0; page < 1200; page++) await handle.write('x', page * 8 * KiB);
    await handle.close();
    const streamed = await perform(map, { image: raw('comb.raw'), stream: true }, folder);
    expect(streamed.result).toEqual({ count: 2400 });
    expect(streamed.batches).toEqual([1000, 1000, 400]);
    expect(streamed.entries[1]).toEqual({
      start: 4096,
      length: 4096,
      depth: 0,
      present: true,
      zero: true,
      data: false,
      compressed: false,
      offset: 4096,
      filename: 'comb.raw',
    });
    const whole = await perform(map, { image: raw('comb.raw') }, folder);
    expect(whole.result?.entries).toEqual(streamed.entries);
  });

  it('has one empty entry for an empty range', async () => {
    file('small.raw', 4096);
    const empty = { length: 0, depth: 0, present: false, zero: false, data: false, compressed: false };
    const past = await perform(map, { image: raw('small.raw'), 'start-offset': 9999 }, folder);
    expect(past.result).toEqual({ count: 1, entries: [{ start: 9999, ...empty }] });
    const none = await perform(map, { image: raw('small.raw'), 'max-length': 0 }, folder);
    expect(none.result?.entries).toEqual([{ start: 0, ...empty }]);
  });
});

describe('check', () => {
  it('is not for formats without a checker', async () => {
    file('nocheck.raw', 512);
    const done = await perform(check, { image: raw('nocheck.raw') }, folder);
    expect(done.error).toMatchObject({
      kind: 'unsupported',
      message: 'This image format does not support checks',
    });
  });

  it('finds nothing in a new image', async () => {
    await create1({ filename: 'fine.qcow2', format: 'qcow2', size: MiB });
    const done = await perform(check, { image: { filename: 'fine.qcow2' } }, folder);
    expect(done.result).toEqual({
      check: {
        filename: 'fine.qcow2',
        format: 'qcow2',
        'check-errors': 0,
        'image-end-offset': 262144,
        'total-clusters': 16,
      },
    });
    expect(done.stderr).toBe('');
  });
});

describe('compare', () => {
  const run = (a: string, b: string, strict = false) =>
    perform(compare, { a: raw(a), b: raw(b), strict }, folder);

  it('tells the sector of the first difference', async () => {
    file('c0', 5 * MiB, { 3000000: 'x' });
    file('c1', 5 * MiB, { 3000000: 'x', 3000999: 'y', 4000000: 'z' });
    const done = await run('c0', 'c1');
    expect(done.result).toEqual({
      identical: false,
      reason: 'content',
      offset: 3000832,
      text: 'Content mismatch at offset 3000832!',
    });
    expect((await run('c1', 'c1')).result?.identical).toBe(true);
  });

  it('finds differences at every border of its chunks', async () => {
    const size = 4 * MiB + 512;
    file('base', size, { 0: 'a', [size - 1]: 'z' });
    for (const offset of [1, 511, 512, 2 * MiB - 1, 2 * MiB, 2 * MiB + 1, 4 * MiB - 1, 4 * MiB, size - 2]) {
      file('other', size, { 0: 'a', [size - 1]: 'z', [offset]: 'q' });
      expect((await run('base', 'other')).result?.offset).toBe(Math.floor(offset / 512) * 512);
    }
  });

  it('lets the longer image end in zeros, and says so', async () => {
    file('short', MiB, { 5: 'x' });
    file('long', 3 * MiB, { 5: 'x' });
    const done = await run('short', 'long');
    expect(done.result).toEqual({ identical: true, text: 'Images are identical.' });
    expect(done.stdout).toBe('Warning: Image size mismatch!\n');
    expect((await run('long', 'short', true)).result).toEqual({
      identical: false,
      reason: 'size',
      text: 'Strict mode: Image size mismatch!',
    });
    file('tail', 3 * MiB, { 5: 'x', [2 * MiB + 700]: 'y' });
    expect((await run('tail', 'short')).result?.offset).toBe(2 * MiB + 512);
  });

  it('names the image that cannot be read', async () => {
    file('whole', MiB, { 5: 'x' });
    await create1({ filename: 'cut.qcow2', format: 'qcow2', size: MiB });
    truncateSync(at('cut.qcow2'), 100);
    const done = await perform(
      compare,
      { a: raw('whole'), b: { filename: 'cut.qcow2', format: 'qcow2' } },
      folder,
    );
    expect(done.error?.message).toMatch(/^Could not open 'cut.qcow2': /);
  });

  it('ends when it is cancelled', async () => {
    file('k1', 64 * MiB, { 0: 'x' });
    file('k2', 64 * MiB, { 0: 'x' });
    const stop = new AbortController();
    stop.abort();
    const done = await perform(compare, { a: raw('k1'), b: raw('k2') }, folder, { signal: stop.signal });
    expect(done.error?.kind).toBe('cancelled');
  });
});

describe('format-options', () => {
  it('adds what the file takes where there is one', async () => {
    const names = async (filename?: string) =>
      (
        await perform(
          formatOptions,
          { format: 'raw', ...(filename === undefined ? {} : { filename }) },
          folder,
        )
      ).result?.options.map((option) => option.name);
    expect(await names()).toEqual(['size']);
    expect(await names('x')).toEqual(['extent_size_hint', 'nocow', 'preallocation', 'size']);
  });

  it('refuses formats that create nothing', async () => {
    const done = await perform(formatOptions, { format: 'dmg' }, folder);
    expect(done.error?.message).toBe("Format driver 'dmg' does not support image creation");
  });
});
