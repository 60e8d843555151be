/** VHDX against the reference: damaged images, logs that each leaves for the other, fixed images, the corpus. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { Headers } from '../../src/engine/formats/vhdx/header.js';
import { MIB } from '../../src/engine/formats/vhdx/layout.js';
import { encodeEntry } from '../../src/engine/formats/vhdx/log.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { golden } from '../golden/harness.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import {
  BAT_AT,
  ITEMS_AT,
  LOG_AT,
  METADATA_AT,
  make,
  open,
  patchHeaders,
  u16,
  u32,
  u64,
} from '../unit/vhdx-images.js';

const dir = tempDir();
const noDiskSize = (text: string) => text.replace(/disk size: .*\n/g, '');

/** What a crash leaves when the log has an entry and the BAT has not: a block full of 7 at the end of the file. */
async function dirty(): Promise<MemoryStorage> {
  const file = await make(4 * MIB, { block_state_zero: false });
  const { image } = await open(file, { writable: true });
  await image.write(MIB, Buffer.alloc(MIB, 7));
  await image.format.close();
  const bat = new Uint8Array(4096);
  await file.read(BAT_AT, bat);
  const headers = await Headers.read(file);
  const logGuid = new Uint8Array(16).fill(5);
  const entry = { at: MIB / 2, sequence: 3n, logGuid, fileSize: file.size };
  await file.write(LOG_AT + MIB / 2, encodeEntry(entry, [{ at: BAT_AT, data: bat }]));
  await headers.update({ logGuid });
  await file.write(BAT_AT, new Uint8Array(4096));
  return file;
}

describeInterop('vhdx: damaged images', () => {
  const { folder, same } = golden();
  const damages: Record<string, (file: MemoryStorage) => Promise<void>> = {
    signature: (file) => file.write(0, Buffer.from('VHDX')),
    headers: (file) => file.zero({ at: 65536, length: 131072 }),
    logversion: (file) => patchHeaders(file, 'logVersion', u16(1)),
    overlap: (file) => patchHeaders(file, 'logOffset', u64(2 * MIB)),
    item: (file) => file.write(METADATA_AT + 10, u16(4)),
    blocks: (file) => file.write(ITEMS_AT, u32(3 * MIB)),
    sectors: (file) => file.write(ITEMS_AT + 32, u32(4096)),
    past: (file) => file.write(BAT_AT + 8, u64(2 ** 40 + 6)),
    overflow: (file) => file.write(BAT_AT + 8, u64(0xfffffffffff00006n)),
    onlog: (file) => file.write(BAT_AT, u64(MIB + 6)),
    state4: (file) => file.write(BAT_AT, u64(8 * MIB + 4)),
  };
  test('are made', async () => {
    for (const [name, damage] of Object.entries(damages)) {
      const file = await make(4 * MIB);
      await damage(file);
      writeFileSync(join(folder, `${name}.vhdx`), file.bytes());
    }
    writeFileSync(join(folder, 'dirty.vhdx'), (await dirty()).bytes());
  });
  for (const name of [...Object.keys(damages), 'dirty']) same(`check -f vhdx ${name}.vhdx`);
  for (const name of ['past', 'overflow', 'overlap', 'dirty', 'state4']) {
    same(`info -f vhdx ${name}.vhdx`, noDiskSize);
  }
  same('map --output=json state4.vhdx');
  same('map state4.vhdx');
});

describeInterop('vhdx: what is not to be had', () => {
  const { folder, same, sameWriting } = golden();
  test('an image', async () => {
    writeFileSync(join(folder, 'a.vhdx'), (await make(4 * MIB)).bytes());
    writeFileSync(join(folder, 'dirty.vhdx'), (await dirty()).bytes());
  });
  sameWriting('resize a.vhdx 8M');
  sameWriting('snapshot -c x a.vhdx');
  same('measure -O vhdx --size 1G');
  same('create -f vhdx -o help');
  sameWriting('create -f vhdx -b a.vhdx -F vhdx b.vhdx');
  sameWriting('convert -c -O vhdx a.vhdx b.vhdx');
  sameWriting('amend -f vhdx -o size=1G a.vhdx');
  sameWriting('check -r all dirty.vhdx', 'check dirty.vhdx', 'compare dirty.vhdx dirty.vhdx');
  sameWriting('check -r leaks --output=json dirty.vhdx', 'check dirty.vhdx');
  for (const options of [
    'block_size=3M',
    'log_size=0',
    'log_size=4G',
    'log_size=1500k,block_size=1500k',
    'subformat=thick',
    'block_state_zero=perhaps',
    'block_size=0,subformat=fixed',
  ]) {
    sameWriting(`create -f vhdx -o ${options} n.vhdx 20M`);
  }
  sameWriting('create -f vhdx n.vhdx 65T');
});

describeInterop('vhdx: the other way round', () => {
  test('the reference replays our log', async () => {
    const path = join(dir, 'ours.vhdx');
    writeFileSync(path, (await dirty()).bytes());
    const { status, stdout } = run(reference.qemuIo!, ['-f', 'vhdx', '-c', 'read -P 7 1M 1M', path]);
    expect({ status, failed: /failed/.test(stdout) }).toEqual({ status: 0, failed: false });
  });

  test.each(['subformat=dynamic', 'subformat=fixed', 'block_state_zero=off'])(
    'the reference writes into what we have made: %s',
    async (options) => {
      const [name, value] = options.split('=') as [string, string];
      const path = join(dir, 'made.vhdx');
      const file = await make(5 * MIB, { [name]: value === 'off' ? false : value });
      writeFileSync(path, file.bytes());
      const io = ['write -P 1 100k 1M', 'write -P 2 4M 1M', 'read -P 1 100k 1M', 'read -P 0 0 100k'];
      const { stdout } = run(reference.qemuIo!, ['-f', 'vhdx', ...io.flatMap((each) => ['-c', each]), path]);
      expect(stdout).not.toMatch(/failed/);
      expect(run(reference.qemuImg!, ['check', path]).status).toBe(0);
      const { image } = await open(new MemoryStorage(readFileSync(path)));
      const bytes = Buffer.alloc(5 * MIB);
      await image.read(0, bytes);
      const expected = Buffer.alloc(5 * MIB);
      expected.fill(1, 100 * 1024, 100 * 1024 + MIB).fill(2, 4 * MIB);
      expect(bytes.equals(expected)).toBe(true);
    },
  );

  test('the entry behind a chunk is told by its number', async () => {
    const path = join(dir, 'chunk.vhdx');
    const file = await make(5000 * MIB);
    await file.write(BAT_AT + 4500 * 8, u64(2 ** 40 + 6));
    writeFileSync(path, file.bytes());
    const { stderr } = run(reference.qemuImg!, ['check', '-f', 'vhdx', path]);
    const { node } = await open(file, { forCheck: true });
    const said: string[] = [];
    const repair = { leaks: false, errors: false };
    await node.checker!.check({ repair, report: (line) => said.push(line) });
    expect(stderr.trim()).toBe(said.join('\n'));
  });
});

const CORPUS = join(import.meta.dirname, '../../../shared/corpus');
const SAMPLE = 'iotest-dynamic-1G.vhdx';

test('the corpus image has its listed checksum', async ({ skip }) => {
  const packed = join(CORPUS, `${SAMPLE}.bz2`);
  const unpacked = existsSync(packed)
    ? spawnSync('bzip2', ['-dc', packed], { maxBuffer: 256 * MIB })
    : undefined;
  if (unpacked?.status !== 0) {
    process.stderr.write(`\nSKIPPED ${SAMPLE}: it, or bzip2, is not there\n`);
    skip('not there');
  }
  const readme = readFileSync(join(CORPUS, 'README.md'), 'utf8');
  const [, size, sum] = new RegExp(`${SAMPLE}\\S* \\| vhdx \\| (\\d+) \\| ([0-9a-f]{64})`).exec(readme)!;
  const { image } = await open(new MemoryStorage(unpacked!.stdout));
  expect(image.size).toBe(Number(size));
  const hash = createHash('sha256');
  const buffer = Buffer.alloc(4 * MIB);
  for (let at = 0; at < image.size; at += buffer.length) {
    const part = buffer.subarray(0, Math.min(buffer.length, image.size - at));
    await image.read(at, part);
    hash.update(part);
  }
  expect(hash.digest('hex')).toBe(sum);
}, 60_000);
