/** image-inspect: each safety check on an image that fails it, and on good ones; and that nothing else is opened. */
import { mkdirSync, readFileSync, realpathSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { HeaderV2, headerOffset } from '../../src/engine/formats/qcow2/layout.js';
import { runOperation } from '../../src/engine/index.js';
import { inspect } from '../../src/engine/operations/inspect.js';
import { partitionTable } from '../../src/engine/operations/partition-table.js';
import type { ImageInspectParams, SafetyCheck } from '../../src/protocol/commands/image-inspect.js';
import { perform } from '../support/operations.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';

const folder = realpathSync(tempDir());
const at = (name: string): string => join(folder, name);

async function create(name: string, format: string, more: object = {}): Promise<string> {
  const operation = async (params: object, context: never): Promise<void> => {
    const done = await runOperation('image-create', params, context);
    if (done.isErr()) throw done.error;
  };
  const { error } = await perform(
    operation as never,
    { filename: at(name), format, size: 1 << 20, ...more },
    folder,
  );
  if (error !== undefined) throw error;
  return name;
}

async function look(filename: string, more: Partial<ImageInspectParams> = {}) {
  const { result, error } = await perform(inspect, { filename, ...more }, folder, {
    policy: { roots: [folder] },
  });
  if (error !== undefined) throw error;
  const by = (name: SafetyCheck['name']): SafetyCheck => result!.checks.find((each) => each.name === name)!;
  const bad = result!.checks.filter(({ status }) => status === 'fail').map(({ name }) => name);
  return { ...result!, by, bad };
}

/** Changes bytes of a file. */
function patch(name: string, offset: number, bytes: Uint8Array | string): string {
  const all = readFileSync(at(name));
  Buffer.from(bytes as string, 'latin1').copy(all, offset);
  writeFileSync(at(name), all);
  return name;
}

describe('a good image', () => {
  for (const [format, options] of [
    ['qcow2', {}],
    ['qcow2', { extended_l2: true }],
    ['qcow2', { compat: '0.10' }],
    ['vmdk', {}],
    ['vmdk', { subformat: 'streamOptimized' }],
    ['vdi', {}],
    ['vhdx', {}],
    ['qed', {}],
  ] as const) {
    it(`is safe: ${format} ${JSON.stringify(options)}`, async () => {
      const name = await create(`good-${format}-${Object.keys(options)}`, format, { options });
      const report = await look(name, { format, 'max-size': 1 << 20 });
      expect(report).toMatchObject({ format, 'virtual-size': 1 << 20, safe: true, bad: [] });
      expect(report.checks.map((each) => each.name)).toHaveLength(9);
      expect(report.by('partition-table')).toMatchObject({ status: 'pass', text: 'no partition table' });
    });
  }

  it('is safe as raw, where it is said to be raw; else that is a guess', async () => {
    await create('good.raw', 'raw');
    expect(await look('good.raw', { format: 'raw' })).toMatchObject({ safe: true, bad: [] });
    const guessed = await look('good.raw');
    expect(guessed).toMatchObject({ safe: true });
    expect(guessed.by('format')).toMatchObject({
      status: 'warn',
      text: 'nothing says what it is: taken for raw',
    });
  });
});

describe('what an image refers to', () => {
  it('is told and not opened: a backing file', async () => {
    const more = { 'no-backing-check': true, 'backing-format': 'raw', backing: '/nowhere/secret' };
    for (const format of ['qcow2', 'qed']) {
      const report = await look(await create(`backed.${format}`, format, more));
      expect(report).toMatchObject({ safe: false, bad: ['backing-file'] });
      expect(report.by('backing-file').names).toEqual(['/nowhere/secret']);
    }
  });

  it('is told and not opened: a data file', async () => {
    await create('data.qcow2', 'qcow2', { options: { data_file: at('data.raw') } });
    const report = await look('data.qcow2');
    expect(report).toMatchObject({ safe: false, bad: ['data-file'] });
    expect(report.by('data-file').names).toEqual([at('data.raw')]);
    expect(report.by('partition-table').status).not.toBe('fail');
  });

  it('is told and not opened: extents', async () => {
    const text = (line: string): string =>
      `# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="twoGbMaxExtentSparse"\n${line}\n`;
    writeFileSync(at('flat.vmdk'), text('RW 128 FLAT "/etc/passwd" 0\nRW 128 FLAT "../x" 0'));
    const report = await look('flat.vmdk');
    expect(report).toMatchObject({ safe: false, bad: ['extents'] });
    expect(report.by('extents').names).toEqual(['/etc/passwd', '../x']);
    writeFileSync(at('sparse.vmdk'), text('RW 128 SPARSE "/etc/passwd"'));
    expect((await look('sparse.vmdk')).by('extents').names).toEqual(['/etc/passwd']);
    expect((await look('sparse.vmdk')).by('header').status).toBe('skip');
  });
});

describe('a strange header', () => {
  it('is told: features of the future, though the image does not open', async () => {
    await create('future.qcow2', 'qcow2');
    patch('future.qcow2', headerOffset.incompatible, Uint8Array.of(0, 0, 0, 0, 0, 1, 0, 0));
    const report = await look('future.qcow2');
    expect(report.bad).toEqual(['header', 'features']);
    expect(report.by('features').text).toBe('incompatible features 0x10000');
    expect(report.by('backing-file').status).toBe('pass');
  });

  it('is told: a backing file beside other damage', async () => {
    await create('both.qcow2', 'qcow2', {
      ...{ 'no-backing-check': true, 'backing-format': 'raw', backing: '/etc/passwd' },
    });
    patch('both.qcow2', HeaderV2.offsetOf('clusterBits'), Uint8Array.of(0, 0, 0, 99));
    const report = await look('both.qcow2');
    expect(report.bad).toEqual(['header', 'backing-file']);
    expect(report.by('backing-file').names).toEqual(['/etc/passwd']);
  });

  it('is told: more than one format', async () => {
    await create('poly.qcow2', 'qcow2');
    truncateSync(at('poly.qcow2'), 1 << 20);
    patch('poly.qcow2', 0x8001, 'CD001');
    expect((await look('poly.qcow2')).by('format')).toMatchObject({
      status: 'fail',
      names: ['qcow2', 'iso'],
    });
    await create('tail.qcow2', 'qcow2');
    truncateSync(at('tail.qcow2'), 1 << 20);
    patch('tail.qcow2', (1 << 20) - 512, 'conectix');
    expect((await look('tail.qcow2')).by('format')).toMatchObject({
      status: 'fail',
      names: ['qcow2', 'vpc'],
    });
  });

  it('is told: another format than it was said to be', async () => {
    await create('said.qcow2', 'qcow2');
    expect((await look('said.qcow2', { format: 'raw' })).by('format')).toMatchObject({
      status: 'fail',
      text: 'is qcow2, and was said to be raw',
    });
    expect((await look('good.raw', { format: 'qcow2' })).bad).toEqual(['format']);
  });

  it('is told: too large a disk, encryption', async () => {
    await create('large.qcow2', 'qcow2', { size: 2 ** 40 });
    const report = await look('large.qcow2', { 'max-size': 2 ** 30 });
    expect(report.bad).toEqual(['size']);
    expect(report.by('size').text).toBe('1099511627776 bytes for the guest: more than 1073741824');
    writeFileSync(at('luks'), Buffer.concat([Buffer.from('LUKS\xba\xbe', 'latin1'), Buffer.alloc(4096)]));
    expect((await look('luks')).by('encryption').status).toBe('warn');
    await create('aes.qcow2', 'qcow2', { options: { compat: '0.10' } });
    patch('aes.qcow2', HeaderV2.offsetOf('cryptMethod'), Uint8Array.of(0, 0, 0, 1));
    expect((await look('aes.qcow2')).by('encryption').status).toBe('warn');
  });

  it('is a report for any bytes', async () => {
    const names = ['good-qcow2-', 'good-vmdk-', 'good-vdi-', 'good-vhdx-', 'good-qed-'];
    let seed = 1;
    const random = (): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return seed / 2 ** 32;
    };
    for (let round = 0; round < 200; round++) {
      const bytes = readFileSync(at(names[round % names.length]!)).subarray(0, 200_000);
      for (let n = 0; n < 8; n++) bytes[Math.floor(random() * 700)] = Math.floor(random() * 256);
      writeFileSync(at('mutant'), bytes);
      const report = await look('mutant');
      for (const { text } of report.checks) expect(text).not.toMatch(/internal error/);
    }
  });
});

describe('the name', () => {
  it('is a path and nothing else, inside of the roots', async () => {
    await expect(look('json:{"driver":"qcow2","file.filename":"good.raw"}')).rejects.toMatchObject({
      kind: 'not-found',
    });
    await expect(look('/etc/passwd')).rejects.toMatchObject({
      kind: 'denied',
      context: { check: 'image-root' },
    });
    mkdirSync(at('sub'));
    symlinkSync('/etc/passwd', at('sub/link'));
    await expect(look('sub/link')).rejects.toMatchObject({ context: { check: 'image-root' } });
    await expect(look('nothing')).rejects.toMatchObject({ kind: 'not-found' });
  });
});

describe('a partition table', () => {
  const entry = (type: number, first: number, count: number, boot = 0): Buffer => {
    const bytes = Buffer.alloc(16);
    bytes[0] = boot;
    bytes[4] = type;
    bytes.writeUInt32LE(first, 8);
    bytes.writeUInt32LE(count, 12);
    return bytes;
  };
  const disk = (entries: Buffer[], gpt = false, oem = ''): Buffer => {
    const sectors = Buffer.alloc(1024);
    sectors.write(oem, 3, 'latin1');
    for (const [index, each] of entries.entries()) each.copy(sectors, 446 + 16 * index);
    sectors.writeUInt16LE(0xaa55, 510);
    if (gpt) sectors.write('EFI PART', 512, 'latin1');
    return sectors;
  };
  const size = 1000 * 512;
  it.each([
    ['pass', 'no partition table', Buffer.alloc(1024)],
    ['pass', 'an MBR', disk([entry(0x83, 63, 900, 0x80)])],
    ['pass', 'a GPT and its protective MBR', disk([entry(0xee, 1, 0xffffffff)], true)],
    ['pass', 'a file system without partitions', disk([], false, 'NTFS    ')],
    ['warn', 'an MBR with no partition in it', disk([])],
    ['warn', 'an MBR with a boot indicator that is none', disk([entry(0x83, 63, 900, 7)])],
    ['warn', 'an MBR with a partition beyond the disk', disk([entry(0x83, 63, 1000)])],
    ['warn', 'an MBR with a GPT that it does not protect', disk([entry(0x83, 63, 900)], true)],
    ['warn', 'an MBR with a protective MBR without a GPT', disk([entry(0xee, 1, 999)])],
    [
      'warn',
      'an MBR with a protective entry out of its place, partitions beside the protective one (a hybrid MBR)',
      disk([entry(0x83, 63, 9), entry(0xee, 1, 999)], true),
    ],
  ])('%s: %s', (status, text, sectors) => {
    expect(partitionTable(sectors as Buffer, size)).toEqual({ status, text });
  });

  it('is found in the guest of any format', async () => {
    await create('mbr.raw', 'raw');
    const sectors = disk([entry(0x83, 63, 900)]);
    writeFileSync(at('mbr.raw'), Buffer.concat([sectors, Buffer.alloc(size - sectors.length)]));
    const params = {
      sources: [{ filename: at('mbr.raw'), format: 'raw' }],
      target: { filename: at('mbr.qcow2'), format: 'qcow2' },
      compress: true,
      create: true,
    };
    const convert = async (given: object, context: never): Promise<void> => {
      const done = await runOperation('image-convert', given, context);
      if (done.isErr()) throw done.error;
    };
    await perform(convert as never, params, folder);
    expect((await look('mbr.qcow2')).by('partition-table').text).toBe('an MBR');
  });
});

describeInterop('images of the reference', () => {
  it.each(['qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc', 'qed', 'parallels'])('are safe: %s', async (format) => {
    const made = run(reference.qemuImg!, ['create', '-q', '-f', format, at(`ref.${format}`), '4M']);
    expect(made.stderr).toBe('');
    expect(await look(`ref.${format}`, { format })).toMatchObject({ safe: true, format, bad: [] });
  });
});
