/** qcow2's runtime options: what is refused, in the reference's words and order, and what each does to an image. */
import { copyFileSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { ours, theirs } from '../golden/harness.js';
import { describeInterop, run, tempDir } from '../support/reference.js';

const REFUSED: readonly (readonly [image: 'v2' | 'v3', options: string])[] = [
  ['v3', 'overlap-check=foo'],
  ['v3', 'overlap-check.template=Cached'],
  ['v3', 'overlap-check=all,overlap-check.template=none'],
  ['v3', 'overlap-check=bad,overlap-check.template=all'],
  ['v3', 'overlap-check.refcount-block=maybe'],
  ['v3', 'overlap-check.inactive-l2=1'],
  ['v3', 'overlap-check.nope=on'],
  ['v3', 'overlap-check=foo,l2-cache-size=9,cache-size=3'],
  ['v2', 'lazy-refcounts=on,overlap-check=foo'],
  ['v2', 'lazy-refcounts=on,discard-no-unref=maybe'],
  ['v2', 'discard-no-unref=on,encrypt.format=luks'],
  ['v3', 'pass-discard-other=maybe,overlap-check=foo'],
  ['v3', 'l2-cache-size=1M,refcount-cache-size=1M,cache-size=1M'],
  ['v3', 'refcount-cache-size=2M,cache-size=1M'],
  ['v3', 'cache-size=10E'],
  ['v3', 'cache-size=16E'],
  ['v3', 'refcount-cache-size=256T'],
  ['v3', 'l2-cache-entry-size=256'],
  ['v3', 'l2-cache-entry-size=3000,overlap-check=foo'],
  ['v3', 'l2-cache-entry-size=128k,l2-cache-size=2M,cache-size=1M'],
  ['v3', 'cache-clean-interval=4294967296,overlap-check=foo'],
  ['v3', 'cache-clean-interval=18446744073709551616'],
  ['v3', 'encrypt.format=aes'],
];
const ACCEPTED =
  'overlap-check=all,overlap-check.template=all,overlap-check.active-l1=off,lazy-refcounts=on,discard-no-unref=on,' +
  'l2-cache-entry-size=4k,l2-cache-size=7E,cache-clean-interval=4294967295,pass-discard-other=on,encrypt.key-secret=x';

const CLUSTER = 65536;
const COPIED = 1n << 63n;

describeInterop("qcow2's runtime options", () => {
  const folder = tempDir();
  const img = (...args: string[]) => expect(run('qemu-img', args, { cwd: folder }).stderr).toBe('');
  img('create', '-q', '-f', 'qcow2', 'v3.qcow2', '64M');
  img('create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', 'v2.qcow2', '64M');
  writeFileSync(join(folder, 'old.raw'), Buffer.alloc(1 << 20, 'a'));
  writeFileSync(join(folder, 'new.raw'), Buffer.alloc(1 << 20, 'b'));
  writeFileSync(join(folder, 'zero.raw'), Buffer.alloc(1 << 20));

  it.each(REFUSED)('%s: %s', (image, options) => {
    const args = ['map', '--image-opts', `driver=qcow2,file.filename=${image}.qcow2,${options}`];
    expect(ours(args, folder)).toEqual(theirs(args, folder));
  });

  it('all of them at once', () => {
    const args = [
      'bench',
      '-q',
      '-w',
      '-c',
      '1',
      '--image-opts',
      `driver=qcow2,file.filename=v3.qcow2,${ACCEPTED}`,
    ];
    expect(ours(args, folder)).toMatchObject({ status: 0, stderr: '' });
    expect(run('qemu-img', ['check', '-q', 'v3.qcow2'], { cwd: folder }).status).toBe(0);
  });

  // An image with a snapshot and a bitmap, and its first guest cluster said to be where other things are.
  img('convert', '-f', 'raw', '-O', 'qcow2', 'old.raw', 'base.qcow2');
  img('snapshot', '-c', 's', 'base.qcow2');
  img('bitmap', '--add', '--disable', 'base.qcow2', 'b');
  img('convert', '-n', '-f', 'raw', '-O', 'qcow2', 'old.raw', 'base.qcow2');
  const base = readFileSync(join(folder, 'base.qcow2'));
  const offset = (at: number) => Number(base.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n);
  const bitmaps = base.indexOf(Buffer.from([0x23, 0x85, 0x28, 0x75]), 104);
  const l2 = offset(offset(40));
  const inactiveL1 = offset(offset(64));
  const places: Readonly<Record<string, number>> = {
    'refcount table': offset(48),
    'active L1 table': offset(40),
    'snapshot table': offset(64),
    'inactive L1 table': inactiveL1,
    'bitmap directory': offset(bitmaps + 24),
    'active L2 table': l2,
    'refcount block': offset(offset(48)),
    'inactive L2 table': offset(inactiveL1),
  };
  /** `lacking`: a mode that does not look there. */
  const checks: [what: string, mode: string, lacking?: string][] = [
    ['refcount table', 'overlap-check=constant', 'overlap-check.refcount-table=off'],
    ['active L1 table', 'overlap-check=none,overlap-check.active-l1=on', 'overlap-check=none'],
    ['snapshot table', 'overlap-check=constant'],
    ['inactive L1 table', 'lazy-refcounts=off', 'overlap-check=constant'],
    ['bitmap directory', 'overlap-check.template=constant'],
    ['active L2 table', 'overlap-check=cached', 'overlap-check=constant'],
    ['refcount block', 'overlap-check=cached'],
    ['inactive L2 table', 'overlap-check=all', 'overlap-check=cached'],
  ];

  it.each(checks)('guest data on the %s: %s', (what: string, mode: string, lacking?: string) => {
    const write = (options: string) => {
      const damaged = Buffer.from(base);
      damaged.writeBigUInt64BE(COPIED | BigInt(places[what]!), l2);
      const outcome = [ours, theirs].map((program) => {
        writeFileSync(join(folder, 'd.qcow2'), damaged);
        const target = `driver=qcow2,file.filename=d.qcow2,${options}`;
        const result = program(
          ['convert', '-n', '-f', 'raw', '--target-image-opts', 'new.raw', target],
          folder,
        );
        const after = readFileSync(join(folder, 'd.qcow2'));
        const at = places[what]!;
        return {
          ...result,
          corrupt: (after.readBigUInt64BE(72) & 2n) !== 0n,
          overwritten: after[at + CLUSTER - 1] === 'b'.charCodeAt(0),
        };
      });
      expect(outcome[0]).toEqual(outcome[1]);
      return outcome[0]!;
    };
    expect(write(mode)).toMatchObject({ status: 1, corrupt: true, overwritten: false });
    if (lacking !== undefined) expect(write(lacking)).toMatchObject({ corrupt: false, overwritten: true });
  });

  it('what counts as free and holds our own tables is not taken, whatever is checked', () => {
    for (const what of ['active L1 table', 'refcount table', 'refcount block', 'active L2 table']) {
      const damaged = Buffer.from(base);
      damaged.writeUInt16BE(0, places['refcount block']! + 2 * (places[what]! / CLUSTER));
      // With nothing in the image new places are looked for.
      damaged.fill(0, l2, l2 + CLUSTER);
      writeFileSync(join(folder, 'd.qcow2'), damaged);
      const target = 'driver=qcow2,file.filename=d.qcow2,overlap-check=none';
      const done = ours(['convert', '-n', '-f', 'raw', '--target-image-opts', 'new.raw', target], folder);
      expect(done).toMatchObject({ status: 1, stderr: expect.stringContaining(`overlaps with ${what}`) });
    }
  });

  /** Blocks of the file, in KiB; the file system rounds. */
  const blocks = () => Math.round(statSync(join(folder, 'd.qcow2')).blocks / 2);
  const taken = (program: typeof ours, image: string, options: string, args: (image: string) => string[]) => {
    copyFileSync(join(folder, image), join(folder, 'd.qcow2'));
    const done = program(args(`driver=qcow2,file.filename=d.qcow2${options}`), folder);
    expect(done).toMatchObject({ status: 0, stderr: '' });
    expect(run('qemu-img', ['check', '-q', 'd.qcow2'], { cwd: folder }).status).toBe(0);
    return blocks();
  };

  const remove = (image: string) => ['snapshot', '-d', 's', '--image-opts', image];
  const clear = (image: string) => ['convert', '-n', '-f', 'raw', '--target-image-opts', 'zero.raw', image];
  const amend = (image: string) => ['amend', '-o', 'refcount_bits=8', '--image-opts', image];
  img('convert', '-f', 'raw', '-O', 'qcow2', 'old.raw', 'plain.qcow2');
  it.each([
    ['snapshot', 'base.qcow2', remove, -1024],
    ['request', 'plain.qcow2', clear, -1024],
    ['other', 'plain.qcow2', amend, -64],
  ] as const)(
    'pass-discard-%s: host space is given back, or not, or by default',
    (which, image, args, least) => {
      const sizes = [ours, theirs].map((program) =>
        ['', `,pass-discard-${which}=on`, `,pass-discard-${which}=off`].map((options) =>
          taken(program, image, options, args),
        ),
      );
      const [byDefault, on, off] = sizes[0]!;
      expect(on! - off!).toBeLessThanOrEqual(least);
      expect(byDefault).toBe(which === 'other' ? off : on);
      for (const [index, size] of sizes[0]!.entries())
        expect(Math.abs(size - sizes[1]![index]!)).toBeLessThan(32);
    },
  );

  it('discard-no-unref: the place stays and its blocks go, but not those of a snapshot', () => {
    const mapped = (program: typeof ours) => {
      const size = taken(program, 'plain.qcow2', ',discard-no-unref=on', clear);
      expect(size).toBeLessThan(512);
      return run('qemu-img', ['map', '--output=json', 'd.qcow2'], { cwd: folder }).stdout;
    };
    const map = mapped(ours);
    expect(map).toMatch(/"zero": true.*"offset"/);
    expect(map).toBe(mapped(theirs));

    img('snapshot', '-c', 's', 'plain.qcow2');
    taken(ours, 'plain.qcow2', ',discard-no-unref=on', clear);
    img('convert', '-l', 'snapshot.name=s', '-O', 'raw', 'd.qcow2', 'then.raw');
    expect(readFileSync(join(folder, 'then.raw')).equals(readFileSync(join(folder, 'old.raw')))).toBe(true);
  });
});
