/** VMDK written by us against the reference: the same words, the same layout, and each reads and goes on with the other's. */
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { HostedHeader } from '../../src/engine/formats/vmdk/layout.js';
import { ours, theirs, words } from '../golden/harness.js';
import { describeInterop, run, tempDir } from '../support/reference.js';
import { stamp } from '../unit/vmdk-images.js';

const [ourDir, theirDir] = [tempDir(), tempDir()];
const MIB = 2 ** 20;
/** Each command line is two processes. */
const TIMEOUT = 120_000;
const SUBFORMATS = [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
  'streamOptimized',
];

/** Content ids are random. */
const withoutIds = (text: string) =>
  text.replace(/(cid: |CID=)[0-9a-f]+/g, '$1N').replace(/(disk size: ).*/g, '$1N');

function both(line: string): string {
  const [a, b] = [ours(words(line), ourDir), theirs(words(line), theirDir)].map((result) => ({
    ...result,
    stdout: withoutIds(result.stdout),
    stderr: withoutIds(result.stderr),
  }));
  expect(a).toEqual(b);
  return `${a!.stdout}${a!.stderr}`;
}

function put(name: string, content: Uint8Array, size = content.length): void {
  for (const dir of [ourDir, theirDir]) {
    writeFileSync(join(dir, name), content);
    truncateSync(join(dir, name), size);
  }
}

/** The reference's tools on what we wrote. */
function theirsOnOurs(line: string): void {
  const { status, stderr } = theirs(words(line), ourDir);
  expect({ status, stderr, line }).toEqual({ status: 0, stderr: '', line });
}

function io(dir: string, file: string, ...commands: string[]): void {
  const args = ['-f', 'vmdk', ...commands.flatMap((command) => ['-c', command]), file];
  const { status, stdout } = run('qemu-io', args, { cwd: dir });
  expect({ status, failed: /failed|ERROR/.test(stdout) ? stdout : '' }).toEqual({ status: 0, failed: '' });
}

describeInterop('VMDK, written', () => {
  test('help', { timeout: TIMEOUT }, () => {
    both('create -f vmdk -o help');
  });

  for (const subformat of SUBFORMATS) {
    test(`create ${subformat}`, { timeout: TIMEOUT }, () => {
      for (const more of ['', ',adapter_type=buslogic,hwversion=9,toolsversion=3', ',compat6=on']) {
        both(`create -f vmdk -o subformat=${subformat}${more} c.vmdk 10M`);
        const [a, b] = [ourDir, theirDir].map((dir) => readFileSync(join(dir, 'c.vmdk'), 'latin1'));
        expect(withoutIds(a!).replaceAll('\0', '')).toBe(withoutIds(b!).replaceAll('\0', ''));
        if (a!.startsWith('KDMV')) {
          expect(HostedHeader.decode(Buffer.from(a!, 'latin1'))).toEqual(
            HostedHeader.decode(Buffer.from(b!, 'latin1')),
          );
        }
      }
      both('info c.vmdk');
      both('check c.vmdk');
      both('map --output=json c.vmdk');
      both('resize c.vmdk 20M');
      both('check -r all -f vmdk c.vmdk');
      both('amend -f vmdk -o hwversion=3 c.vmdk');
      both('rebase -f vmdk -u -b other -F vmdk c.vmdk');
      both('snapshot -c a c.vmdk');
    });
  }

  test('what cannot be created is refused in the same words, and leaves what was there', {
    timeout: TIMEOUT,
  }, () => {
    put('b.raw', stamp(MIB, 1));
    both('create -q -f vmdk b.vmdk 2M');
    both('create -q -f vmdk x.vmdk 1M');
    for (const line of [
      '-o adapter_type=foo x.vmdk 1M',
      '-o subformat=foo x.vmdk 1M',
      '-o compat6=on,hwversion=9 x.vmdk 1M',
      '-o zeroed_grain=on,subformat=monolithicFlat x.vmdk 1M',
      '-o adapter_type=foo,subformat=bar,compat6=on,hwversion=3 x.vmdk 1M',
      '-b b.raw -F raw x.vmdk',
      '-b b.vmdk -F raw x.vmdk',
      '-b b.vmdk -F vmdk -o subformat=twoGbMaxExtentFlat x.vmdk',
      '-b b.vmdk x.vmdk',
    ]) {
      expect(both(`create -f vmdk ${line}`)).toContain('qemu-img: ');
      both('info x.vmdk');
    }
    for (const line of ['-u -b b.raw -F vmdk x.vmdk 1M', '-u -b nix.vmdk -F vmdk x.vmdk 1M']) {
      expect(both(`create -f vmdk ${line}`)).toContain('qemu-img: ');
    }
    both('measure -O vmdk --size 1G');
  });

  for (const subformat of SUBFORMATS) {
    test(`convert to ${subformat}, and the reference goes on with it`, { timeout: TIMEOUT }, () => {
      const size = 35 * MIB + 1536;
      const content = Buffer.alloc(size);
      for (const at of [0, 3 * MIB + 512, 34 * MIB]) stamp(MIB + 100, at + 1).copy(content, at);
      put('s.raw', content);
      both(`convert -O vmdk -o subformat=${subformat} s.raw s.vmdk`);
      theirsOnOurs('check s.vmdk');
      theirsOnOurs('compare s.raw s.vmdk');
      both('convert -O raw s.vmdk back.raw');
      expect(readFileSync(join(ourDir, 'back.raw')).equals(content)).toBe(true);
      if (subformat === 'streamOptimized') return;
      io(ourDir, 's.vmdk', 'write -P 7 10M 100k', 'read -P 7 10M 100k');
      expect(ours(words('convert -n -O vmdk back.raw s.vmdk'), ourDir).status).toBe(0);
      theirsOnOurs('compare s.raw s.vmdk');
      theirsOnOurs('check s.vmdk');
    });
  }

  test('what the reference has created we write, and content ids follow', { timeout: TIMEOUT }, () => {
    put('u.raw', stamp(3 * MIB, 5));
    for (const subformat of SUBFORMATS) {
      const create = `create -q -f vmdk -o subformat=${subformat} t.vmdk 3M`;
      expect(theirs(words(create), ourDir).status).toBe(0);
      const id = () =>
        JSON.parse(theirs(words('info --output=json t.vmdk'), ourDir).stdout)['format-specific'].data.cid;
      const before = id();
      expect(ours(words('convert -n -O vmdk u.raw t.vmdk'), ourDir)).toMatchObject({ status: 0, stderr: '' });
      theirsOnOurs('compare u.raw t.vmdk');
      expect(id()).not.toBe(before);
    }
  });

  test('over a backing file: unaligned writes, zeros, commit', { timeout: TIMEOUT }, () => {
    both('create -q -f vmdk -o zeroed_grain=on base.vmdk 4M');
    for (const dir of [ourDir, theirDir]) io(dir, 'base.vmdk', 'write -P 1 0 4M');
    both('create -q -f vmdk -b base.vmdk -F vmdk -o zeroed_grain=on o.vmdk');
    for (const dir of [ourDir, theirDir]) io(dir, 'o.vmdk', 'write -P 2 70k 10k', 'write -z 256k 128k');
    both('map --output=json o.vmdk');
    both('convert -O raw o.vmdk o.raw');
    both('commit o.vmdk');
    both('compare o.raw base.vmdk');
    both('map --output=json base.vmdk');
    theirsOnOurs('compare o.raw base.vmdk');
    // The base has changed under its overlay.
    expect(both('compare o.raw o.vmdk')).toContain('Invalid argument');
  });
});
