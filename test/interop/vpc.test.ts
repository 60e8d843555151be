/** VHD against the reference: what it makes byte by byte, error texts, differencing chains, Virtual PC's own image. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { expect, it } from 'vitest';
import { decodeBzip2 } from '../../src/engine/codec/bzip2.js';
import { DynamicHeader, Footer, footerChecksum } from '../../src/engine/formats/vpc/layout.js';
import { golden } from '../golden/harness.js';
import { qemuImg } from '../support/client.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { dynamic, fixed, resealed, setEntry } from '../unit/vpc-images.js';

const MiB = 2 ** 20;

/** The file without what differs from one creation to the next: time stamp, unique id, and with them the checksum. */
function comparable(path: string): Buffer {
  const file = readFileSync(path);
  for (const at of [0, file.length - Footer.size]) {
    if (file.toString('latin1', at, at + 8) !== 'conectix') continue;
    const footer = file.subarray(at, at + Footer.size);
    expect(Footer.decode(footer).checksum).toBe(footerChecksum(footer));
    file.fill(0, at + Footer.offsetOf('timeStamp'), at + Footer.offsetOf('creatorApplication'));
    file.fill(0, at + Footer.offsetOf('checksum'), at + Footer.offsetOf('savedState'));
  }
  return file;
}

describeInterop('vpc: files that the reference makes', () => {
  const folder = tempDir();
  const path = (name: string) => join(folder, name);

  const sizes = ['0', '511', '1M', '3000000', '20M', '5G', '33G', '127G', '136899993600', '200G'];
  it.each(['', 'force_size=on'])('creates the same files, options "%s"', (options) => {
    for (const size of sizes) {
      for (const program of ['ours', 'theirs']) {
        const args = ['create', '-q', '-f', 'vpc', ...(options ? ['-o', options] : []), path(program), size];
        const result = program === 'ours' ? qemuImg(args) : run(reference.qemuImg!, args);
        expect(result).toMatchObject({ status: 0, stderr: '' });
      }
      expect(comparable(path('ours')).equals(comparable(path('theirs'))), size).toBe(true);
    }
  });

  it.each(['', 'subformat=fixed'])('converts to the same files, options "%s"', (options) => {
    const source = Buffer.alloc(7 * MiB);
    for (let at = 0; at < source.length; at += 3 * MiB) source.fill(0x51 + at / MiB, at, at + 600_000);
    writeFileSync(path('raw'), source);
    for (const program of ['ours', 'theirs']) {
      const args = ['convert', '-f', 'raw', '-O', 'vpc', ...(options ? ['-o', options] : [])];
      const all = [...args, path('raw'), path(program)];
      const result = program === 'ours' ? qemuImg(all) : run(reference.qemuImg!, all);
      expect(result).toMatchObject({ status: 0, stderr: '' });
    }
    expect(comparable(path('ours')).equals(comparable(path('theirs')))).toBe(true);
  });

  it('reads differencing disks through their parents, which the reference does not', () => {
    const base = Buffer.alloc(4 * 4096, 0xb5);
    writeFileSync(path('base.vhd'), fixed(base));
    const id = Footer.decode(fixed(base), base.length).uniqueId;
    const data = Buffer.alloc(4096, 0xc7);
    const parts = {
      size: base.length,
      blocks: new Map([[1, { data, bitmap: Buffer.concat([Buffer.of(0b10000001), Buffer.alloc(511)]) }]]),
      parent: '.\\base.vhd',
    };
    writeFileSync(path('child.vhd'), dynamic({ ...parts, parentId: id }));
    const convert = (name: string) => qemuImg(['convert', '-O', 'raw', name, 'out.raw'], { cwd: folder });
    expect(convert('child.vhd')).toMatchObject({ status: 0, stderr: '' });
    const expected = Buffer.from(base);
    expected.fill(0xc7, 4096, 4096 + 512);
    expected.fill(0xc7, 8192 - 512, 8192);
    expect(readFileSync(path('out.raw')).equals(expected)).toBe(true);
    writeFileSync(path('orphan.vhd'), dynamic({ ...parts, parentId: Buffer.alloc(16, 9) }));
    expect(convert('orphan.vhd')).toMatchObject({
      status: 1,
      stderr: expect.stringMatching('Invalid argument'),
    });
  });

  const corpus = resolve(import.meta.dirname, '../../../shared/corpus/virtualpc-dynamic.vhd.bz2');
  it.skipIf(!existsSync(corpus))('reads an image by Virtual PC', async () => {
    const unpacked = Buffer.alloc(262_656);
    await decodeBzip2(readFileSync(corpus), unpacked);
    writeFileSync(path('virtualpc.vhd'), unpacked);
    const map = qemuImg(['map', '--output=json', path('virtualpc.vhd')]).stdout;
    expect(JSON.parse(map)).toMatchObject([{ start: 0, length: 136_363_130_880, zero: true, data: false }]);
    expect(qemuImg(['check', path('virtualpc.vhd')]).stdout).toMatch(/^No errors/);
    writeFileSync(path('virtualpc-cut.vhd'), unpacked.subarray(0, -512));
    expect(qemuImg(['check', path('virtualpc-cut.vhd')]).status).toBe(2);
  });
});

describeInterop('vpc: the same command lines', () => {
  const { folder, same, sameWriting, differs } = golden();
  const write = (name: string, bytes: Uint8Array) => writeFileSync(join(folder, name), bytes);
  const small = () => dynamic({ size: 8 * 4096, blocks: new Map([[2, { data: Buffer.alloc(4096, 1) }]]) });
  const header = (field: 'maxTableEntries' | 'blockSize', value: number) => {
    const image = small();
    image.writeUInt32BE(value, 512 + DynamicHeader.offsetOf(field));
    return image;
  };
  write('sound', small());
  write('fixed', fixed(Buffer.alloc(4096, 2)));
  write('empty', new Uint8Array(0));
  write('junk', Buffer.alloc(600, 3));
  write('sum', Buffer.concat([small().fill(1, 100, 101)]));
  write('huge', fixed(new Uint8Array(512), { currentSize: 2n ** 62n }));
  write('block', header('blockSize', 3));
  write('few', header('maxTableEntries', 7));
  write('many', header('maxTableEntries', 0x80000000));
  write('cut', setEntry(small(), 5, 99_999));
  write('geometry', dynamic({ size: 8 * 4096, creator: 'vpc ', geometry: [1, 3, 20] }));
  const odd = small();
  odd.writeBigUInt64BE(77n, Footer.offsetOf('dataOffset'));
  write('odd', resealed(odd, 0));

  for (const name of [
    'sound',
    'fixed',
    'empty',
    'junk',
    'sum',
    'huge',
    'block',
    'few',
    'many',
    'cut',
    'geometry',
    'odd',
  ]) {
    same(`info -f vpc --output=json ${name}`);
  }
  same('map --output=json sound');
  same('map -f vpc --output=json fixed');
  same('info --image-opts driver=vpc,force_size_calc=current_size,file.filename=geometry');
  same('info --image-opts driver=vpc,force_size_calc=x,file.filename=geometry');
  same('create -f vpc -o help x');
  same('measure -O vpc --size 1M');
  same('measure -O qcow2 sound');
  same('resize -f vpc sound 1M');
  same('rebase -u -b x -F raw sound');
  sameWriting('create -f vpc new 2041G');
  sameWriting('create -f vpc -o subformat=other new 1M');
  sameWriting('create -f vpc -o force_size=x new 1M');
  sameWriting('create -f vpc -o subformat=fixed,force_size=on new 3000000', 'info -f vpc new');
  sameWriting('create -f vpc -b sound -F vpc new');
  sameWriting('convert -c -O vpc sound new');
  sameWriting(
    'convert -n -f raw -O vpc junk sound',
    'convert -f vpc -O raw sound out',
    'map --output=json out',
  );
  differs('check sound', 'the reference does not check this format');
  same('check -r all sound');
});
