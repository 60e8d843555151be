/** Results and errors of create, info, map, check and compare, against what the reference prints. */
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { check } from '../../src/engine/operations/check.js';
import { compare } from '../../src/engine/operations/compare.js';
import { create } from '../../src/engine/operations/create.js';
import { info } from '../../src/engine/operations/info.js';
import { map } from '../../src/engine/operations/map.js';
import { splitOptions } from '../../src/protocol/options.js';
import { perform } from '../support/operations.js';
import { describeInterop, type RunResult, reference, run, tempDir } from '../support/reference.js';

const KiB = 1024;
const MiB = 1024 * KiB;
const folder = tempDir();
const at = (name: string) => join(folder, name);
const theirs = (...args: string[]): RunResult => run(reference.qemuImg!, args, { cwd: folder });
const qemuIo = (image: string, ...commands: string[]): void => {
  const done = run(reference.qemuIo!, [...commands.flatMap((command) => ['-c', command]), image], {
    cwd: folder,
  });
  expect(done.status, done.stderr + done.stdout).toBe(0);
};

function made(...args: string[]): void {
  const done = theirs('create', '-q', ...args);
  expect(done.status, done.stderr).toBe(0);
}

/** A sparse raw file with bytes at some places. */
function file(name: string, size: number, bytes: Readonly<Record<number, string>> = {}): void {
  const fd = openSync(at(name), 'w');
  for (const [offset, text] of Object.entries(bytes)) writeSync(fd, text, Number(offset));
  closeSync(fd);
  truncateSync(at(name), size);
}

const IMAGES = [
  'base.qcow2',
  'mid.qcow2',
  'top.qcow2',
  'mixed.qcow2',
  'metadata.qcow2',
  'falloc.qcow2',
  'data-file.qcow2',
  'data-raw.qcow2',
  'short-backing.qcow2',
  'orphan.qcow2',
  'sub/relative.qcow2',
  'sparse.vmdk',
  'flat.vmdk',
  'split.vmdk',
  'odd.raw',
  'empty.raw',
  'file:mid.qcow2',
  'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}',
];

function makeImages(): void {
  made('-f', 'qcow2', 'base.qcow2', '64M');
  qemuIo('base.qcow2', 'write -P 1 0 1M');
  made('-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', '-o', 'compat=0.10', 'mid.qcow2');
  const options = 'extended_l2=on,cluster_size=128k,lazy_refcounts=on,compression_type=zstd';
  made('-f', 'qcow2', '-b', 'mid.qcow2', '-F', 'qcow2', '-o', options, 'top.qcow2');
  theirs('snapshot', '-c', 's1', 'top.qcow2');
  theirs('snapshot', '-c', 'snap two', 'top.qcow2');
  theirs('bitmap', '--add', '-g', '128k', 'top.qcow2', 'bm0');
  theirs('bitmap', '--add', '--disable', 'top.qcow2', 'bm1');
  made('-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'mixed.qcow2', '65M');
  qemuIo(
    'mixed.qcow2',
    'write -P 1 512k 1M',
    'write -z 8M 1M',
    'write -z 9M 100k',
    'write -c 10M 64k',
    'write -c -P 3 10304k 64k',
    'write -P 4 12M 64k',
    'discard 30M 1M',
  );
  made('-f', 'qcow2', '-o', 'preallocation=metadata', 'metadata.qcow2', '10M');
  made('-f', 'qcow2', '-o', 'preallocation=falloc', 'falloc.qcow2', '10M');
  made('-f', 'qcow2', '-o', 'data_file=d0.raw', 'data-file.qcow2', '10M');
  qemuIo('data-file.qcow2', 'write 1M 64k');
  made('-f', 'qcow2', '-o', 'data_file=d1.raw,data_file_raw=on', 'data-raw.qcow2', '10M');
  file('odd.raw', 1000004, { 0: 'hello', 1000000: 'foo' });
  file('empty.raw', 0);
  made('-f', 'qcow2', '-b', 'odd.raw', '-F', 'raw', 'short-backing.qcow2', '2000000');
  qemuIo('short-backing.qcow2', 'write 512k 6k');
  made('-f', 'qcow2', '-b', 'gone', '-F', 'qcow2', '-u', 'orphan.qcow2', '1M');
  mkdirSync(at('sub'));
  made('-f', 'qcow2', 'sub/b.qcow2', '5M');
  made('-f', 'qcow2', '-b', 'b.qcow2', '-F', 'qcow2', 'sub/relative.qcow2');
  made('-f', 'vmdk', 'sparse.vmdk', '10M');
  made('-f', 'vmdk', '-o', 'subformat=twoGbMaxExtentFlat', 'flat.vmdk', '10M');
  made('-f', 'vmdk', '-o', 'subformat=twoGbMaxExtentSparse', 'split.vmdk', '5G');
}

/** Both failed with the same words, or both succeeded with results that `equal` compares. */
async function same(
  outcome: { readonly errorText: string },
  reference: RunResult,
  equal: (stdout: string) => void,
): Promise<void> {
  expect(outcome.errorText).toBe(reference.stderr);
  if (outcome.errorText === '') equal(reference.stdout);
}

describeInterop('operations against the reference', () => {
  beforeAll(makeImages);

  for (const image of IMAGES) {
    it(`info ${image}`, async () => {
      for (const chain of [false, true]) {
        const ours = await perform(info, { image: { filename: image }, 'backing-chain': chain }, folder);
        const args = ['info', '--output=json', ...(chain ? ['--backing-chain'] : []), image];
        await same(ours, theirs(...args), (text) => {
          const images = ours.result!.images;
          expect(chain ? images : images[0]).toEqual(JSON.parse(text));
        });
      }
    });

    it(`map ${image}`, async () => {
      for (const range of [[], [1000, 10_000], [MiB, 100 * MiB], [80 * MiB, MiB], [0, 0]] as const) {
        const [start, length] = range;
        const params = {
          image: { filename: image },
          ...(start === undefined ? {} : { 'start-offset': start, 'max-length': length }),
        };
        const ours = await perform(map, params, folder);
        const args = start === undefined ? [] : ['-s', String(start), '-l', String(length)];
        await same(ours, theirs('map', '--output=json', ...args, image), (text) => {
          const entries = ours.result!.entries!.map(({ filename, ...entry }) => entry);
          expect(entries).toEqual(JSON.parse(text));
        });
      }
    });

    it(`check ${image}`, async () => {
      const ours = await perform(check, { image: { filename: image } }, folder);
      const reference = theirs('check', '--output=json', image);
      await same(ours, reference, (text) => expect(ours.result!.check).toEqual(JSON.parse(text)));
    });
  }

  it('info and map of what is no image', async () => {
    for (const name of ['nope', 'nodir/x', '/tmp', 'foo:bar']) {
      const image = { filename: name };
      expect((await perform(info, { image }, folder)).errorText).toBe(theirs('info', name).stderr);
      expect((await perform(map, { image }, folder)).errorText).toBe(theirs('map', name).stderr);
    }
  });

  const CREATIONS = [
    'n 64M',
    '-o lazy_refcounts=yes,cluster_size=128k,refcount_bits=0x10 n 1G',
    '-o compat=v3,lazy_refcounts n 1000',
    '-o nocow=on,extent_size_hint=1M n 1M',
    '-o compat=0.10 n 1M',
    '-o size=2M n',
    '-o extended_l2=on n 10M',
    '-o compression_type=zstd,refcount_bits=1,preallocation=metadata n 10M',
    '-o preallocation=full n 1M',
    '-o data_file=d n 1M',
    '-o data_file=d,data_file_raw=on n 1M',
    '-b base.qcow2 -F qcow2 n',
    '-b base.qcow2 -F raw n',
    '-b odd.raw -F raw n',
    '-b odd.raw -F raw n 5M',
    '-b sub/relative.qcow2 -F qcow2 n',
    '-b b.qcow2 -F qcow2 sub/n',
    '-b null-co:// -F raw n',
    '-b nope -F qcow2 -u n 1G',
    '-b nope -F qcow2 -u n',
    '-b nope -u n 1G',
    '-b nope -u n',
    '-b nope -F bogus -u n 1G',
    '-b base.qcow2 n',
    '-b odd.raw n 5M',
    '-b odd.raw -F qcow2 n',
    '-b base.qcow2 -F bogus n',
    '-b nope -F qcow2 n',
    '-b base.qcow2 -F qcow2 sub/n',
    '-b orphan.qcow2 -F qcow2 n 1M',
    '-F qcow2 n 1M',
    '-o backing_file=n n 1M',
    '-o backing_file=,backing_fmt=qcow2 n 1M',
    '-o data_file_raw=on n 1M',
    '-o data_file=d,data_file_raw=on -b base.qcow2 -F qcow2 n',
    '-o cluster_size=foo n 1M',
    '-o cluster_size=3 n 1M',
    '-o lazy_refcounts=foo n 1M',
    '-o refcount_bits=foo n 1M',
    '-o refcount_bits=7 n 1M',
    '-o compat=foo n 1M',
    '-o preallocation=foo n 1M',
    '-o foo=bar n 1M',
    'n 4P',
    'n',
    'nodir/n 1M',
    'foo:n 1M',
    '-f raw -o preallocation=falloc n 1M',
    '-f raw -o preallocation=bogus n 1M',
    '-f raw -o preallocation=metadata n 1M',
    '-f raw -o nocow=yes,extent_size_hint=64k n 2M',
    '-f raw -b base.qcow2 -F raw n',
    '-f raw -F raw n 1M',
    '-f dmg n 1M',
    '-f bogus n 1M',
    '-f raw null-co:// 1M',
    '-f raw json:{} 1M',
    '-f raw /tmp 1M',
  ];
  for (const line of CREATIONS) {
    it(`create -f qcow2 ${line}`, async () => {
      const words = line.split(' ');
      const params: Record<string, unknown> & { filename: string } = { format: 'qcow2', filename: '' };
      while (words[0]?.startsWith('-') === true) {
        const flag = words.shift();
        if (flag === '-u') params['no-backing-check'] = true;
        else if (flag === '-o') params.options = Object.fromEntries(splitOptions(words.shift()!));
        else params[{ '-f': 'format', '-b': 'backing', '-F': 'backing-format' }[flag!]!] = words.shift();
      }
      params.filename = words[0]!;
      if (words[1] !== undefined) {
        const scale = { k: KiB, M: MiB, G: 1024 * MiB, P: 2 ** 50 }[words[1].slice(-1)];
        params.size = Number.parseInt(words[1], 10) * (scale ?? 1);
      }
      const clean = () => {
        for (const name of ['n', 'sub/n', 'd']) rmSync(at(name), { force: true });
      };
      clean();
      const reference = theirs('create', '-f', 'qcow2', ...line.split(' '));
      clean();
      const ours = await perform(create, params as Parameters<typeof create>[0], folder);
      expect(ours.stdout).toBe(reference.stdout);
      expect(ours.errorText).toBe(reference.stderr);
      if (params.filename === 'n' && ours.error === undefined && params.format === 'qcow2') {
        expect(theirs('check', '-f', 'qcow2', 'n')).toMatchObject({
          status: words.length > 0 && params['no-backing-check'] === true ? 1 : 0,
        });
      }
      clean();
    });
  }

  it('repairs leaks and checks again, saying what it did', async () => {
    made('-f', 'qcow2', 'fine.qcow2', '10M');
    qemuIo('fine.qcow2', 'write 0 1M');
    const damaged = readFileSync(at('fine.qcow2'));
    const grown = Buffer.concat([damaged, Buffer.alloc(32 * 64 * KiB - damaged.byteLength)]);
    // The refcount block is the third cluster; clusters 30 and 31 are in no table.
    grown.writeUInt16BE(1, 2 * 64 * KiB + 60);
    grown.writeUInt16BE(1, 2 * 64 * KiB + 62);
    for (const repair of [undefined, 'leaks', 'all'] as const) {
      writeFileSync(at('leaky.qcow2'), grown);
      const ours = await perform(
        check,
        { image: { filename: 'leaky.qcow2' }, ...(repair === undefined ? {} : { repair }) },
        folder,
      );
      writeFileSync(at('leaky.qcow2'), grown);
      const flags = repair === undefined ? [] : ['-r', repair];
      const reference = theirs('check', '--output=json', ...flags, 'leaky.qcow2');
      expect(ours.result?.check).toEqual(JSON.parse(reference.stdout));
      expect(ours.stderr).toBe(reference.stderr);
      expect(ours.result?.repaired?.['leaks-fixed']).toBe(repair === undefined ? undefined : 2);
    }
  });

  it('compares as the reference does', async () => {
    file('a', 10 * MiB);
    file('b', 10 * MiB, { 1234567: 'x' });
    file('c', 10 * MiB, { 1234567: 'x', 1234667: 'y' });
    file('d', 11 * MiB, { 1234567: 'x' });
    file('e', 11 * MiB, { 1234567: 'x', 10500000: 'x' });
    file('f', 1000, { 0: 'x'.repeat(1000) });
    file('g', 1024, { 0: 'x'.repeat(1000), 1010: 'y' });
    theirs('convert', '-O', 'qcow2', 'b', 'b.qcow2');
    theirs('convert', '-c', '-O', 'qcow2', 'c', 'c.qcow2');
    made('-f', 'qcow2', 'unallocated', '10M');
    made('-f', 'qcow2', 'zeros', '10M');
    qemuIo('zeros', 'write -z 1M 64k');
    made('-f', 'qcow2', 'written', '10M');
    qemuIo('written', 'write -P 0 1M 64k');
    made('-f', 'qcow2', '-b', 'b.qcow2', '-F', 'qcow2', 'over', '12M');
    const names = [
      'a',
      'b',
      'c',
      'd',
      'e',
      'f',
      'g',
      'b.qcow2',
      'c.qcow2',
      'unallocated',
      'zeros',
      'written',
      'over',
      'nope',
    ];
    for (const a of names) {
      for (const b of names) {
        for (const strict of [false, true]) {
          const ours = await perform(compare, { a: { filename: a }, b: { filename: b }, strict }, folder);
          const reference = theirs('compare', ...(strict ? ['-s'] : []), a, b);
          const told = ours.stdout + (ours.result === undefined ? '' : `${ours.result.text}\n`);
          expect(`${strict} ${a} ${b}: ${told}${ours.errorText}`).toBe(
            `${strict} ${a} ${b}: ${reference.stdout}${reference.stderr}`,
          );
        }
      }
    }
  });

  it('names the offset and the image where reading fails', async () => {
    const lines = Array.from({ length: 100_000 }, (_, i) => String((i * 2654435761) % 4294967296)).join('\n');
    file('text', 4 * MiB, { [2 * MiB + 192 * KiB]: lines });
    theirs('convert', '-c', '-O', 'qcow2', 'text', 'damaged.qcow2');
    const image = readFileSync(at('damaged.qcow2'));
    // Behind the five metadata clusters there are only deflate streams, and none begins with these bits.
    image.fill(0xff, 5 * 64 * KiB);
    writeFileSync(at('damaged.qcow2'), image);
    for (const [a, b] of [
      ['text', 'damaged.qcow2'],
      ['damaged.qcow2', 'text'],
    ] as const) {
      const ours = await perform(compare, { a: { filename: a }, b: { filename: b } }, folder);
      const reference = theirs('compare', a, b);
      expect(reference.status).toBe(4);
      expect(ours.errorText).toBe(reference.stderr);
    }
  });
});
