/** Damaged and hostile VMDK images: refused in the reference's words, or read as it reads them. */
import { writeFileSync } from 'node:fs';
import { dirname, isAbsolute, join } from 'node:path';
import { expect, test } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { vmdk } from '../../src/engine/formats/vmdk/index.js';
import type { FormatNode } from '../../src/engine/node/driver.js';
import { openFile } from '../../src/engine/storage/file.js';
import type { Storage } from '../../src/engine/storage/storage.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { cowd, descriptor, grainsOf, hosted, readAll, seSparse, stamp } from '../unit/vmdk-images.js';

const dir = tempDir();

const make = (name: string, content: Uint8Array | string) =>
  writeFileSync(join(dir, name), typeof content === 'string' ? Buffer.from(content, 'latin1') : content);

/** Names as the reference shows them when it runs in the folder. */
async function withNode<T>(name: string, use: (node: FormatNode) => Promise<T>): Promise<T> {
  const opener = (file: string): Promise<Storage> =>
    openFile({ path: isAbsolute(file) ? file : join(dir, file), filename: file, writable: false });
  const file = await opener(name);
  try {
    const node = await vmdk.open({
      file,
      writable: false,
      options: {},
      forCheck: false,
      metadataOnly: false,
      openChild: (_child, recorded) => opener(join(dirname(name), recorded!)),
      warn: () => {},
    });
    try {
      return await use(node);
    } finally {
      await node.close();
    }
  } finally {
    await file.close();
  }
}

/** The reference's error for an image, without what every failed open has in front; undefined where it opens. */
function theirError(name: string): string | undefined {
  const { status, stderr } = run(reference.qemuImg!, ['info', '-f', 'vmdk', name], { cwd: dir });
  return status === 0 ? undefined : stderr.trim().replace(`qemu-img: Could not open '${name}': `, '');
}

async function ourError(name: string): Promise<string | undefined> {
  try {
    await withNode(name, async () => {});
    return undefined;
  } catch (error) {
    expect(error).toBeInstanceOf(ImageError);
    return (error as ImageError).message;
  }
}

const grains = grainsOf([0, stamp(65536, 1)], [600, stamp(65536, 2)]);
const sparse = hosted({ capacity: 1000 * 128, grains });
const stream = hosted({ capacity: 1000 * 128, grains, compress: true, footer: true });
const se = seSparse({ capacity: 100000, grains: grainsOf([1, stamp(4096, 1)], [5000, stamp(4096, 2)]) });
const cow = cowd({ capacity: 10000, grains: grainsOf([0, stamp(512, 1)]) });

type Patch = readonly [at: number, bytes: 4 | 8 | 2, value: bigint | number];

function patched(image: Buffer, ...patches: readonly Patch[]): Buffer {
  const out = Buffer.from(image);
  for (const [at, bytes, value] of patches) {
    const from = at < 0 ? out.length + at : at;
    if (bytes === 2) out.writeUInt16LE(Number(value), from);
    else if (bytes === 4) out.writeUInt32LE(Number(value), from);
    else out.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)), from);
  }
  return out;
}

const VERSION = 4;
const FLAGS = 8;
const CAPACITY = 12;
const GRAIN = 20;
const ENTRIES = 44;
const RGD = 48;
const GD = 56;
const OVERHEAD = 64;

const parentOf = (name: string) =>
  hosted({ capacity: 128_000, grains, descriptor: `CID=1\nparentCID=1\nparentFileNameHint="${name}"` });

const HEADERS: Readonly<Record<string, Buffer>> = {
  'version 4': patched(sparse, [VERSION, 4, 4]),
  'version 0': patched(sparse, [VERSION, 4, 0]),
  'version 2^32-1': patched(sparse, [VERSION, 4, 0xffffffff]),
  '513 entries': patched(sparse, [ENTRIES, 4, 513]),
  'no entries': patched(sparse, [ENTRIES, 4, 0]),
  'grain 0': patched(sparse, [GRAIN, 8, 0]),
  'grain 1 GiB': patched(sparse, [GRAIN, 8, 0x200000]),
  'grain above 1 GiB': patched(sparse, [GRAIN, 8, 0x200001]),
  'grain 2^23': patched(sparse, [GRAIN, 8, 0x800000]),
  'grain 2^32': patched(sparse, [GRAIN, 8, 1n << 32n]),
  'grain 2^64-1': patched(sparse, [GRAIN, 8, -1n]),
  'capacity at the directory limit': patched(sparse, [CAPACITY, 8, 2n ** 41n]),
  'capacity above the directory limit': patched(sparse, [CAPACITY, 8, 2n ** 41n + 1n]),
  'capacity 2^54': patched(sparse, [GRAIN, 8, 0x200000], [CAPACITY, 8, 2n ** 54n]),
  'capacity 1': patched(sparse, [CAPACITY, 8, 1]),
  'capacity 0': patched(sparse, [CAPACITY, 8, 0]),
  'capacity 0, descriptor far away': patched(sparse, [CAPACITY, 8, 0], [28, 8, 1n << 30n]),
  'overhead past the end': patched(sparse, [OVERHEAD, 8, 1n << 40n]),
  'overhead 2^56': patched(sparse, [OVERHEAD, 8, 1n << 56n]),
  'overhead 2^64-1': patched(sparse, [OVERHEAD, 8, -1n]),
  'directory past the end': patched(sparse, [GD, 8, 1n << 40n]),
  'directory at no offset': patched(sparse, [GD, 8, 1n << 54n]),
  'directory at -2': patched(sparse, [GD, 8, -2n]),
  'redundant directory at no offset': patched(sparse, [FLAGS, 4, 3], [RGD, 8, 1n << 54n]),
  'redundant directory not used': patched(sparse, [FLAGS, 4, 1], [RGD, 8, 1n << 54n]),
  'directory at the end, no footer': patched(sparse, [GD, 8, -1n]),
  'footer: magic': patched(stream, [-1024, 4, 0]),
  'footer: type': patched(stream, [-1536 + 12, 4, 2]),
  'footer: size': patched(stream, [-1536 + 8, 4, 1]),
  'footer: end marker': patched(stream, [-512 + 12, 4, 1]),
  'footer: end marker value': patched(stream, [-512, 8, 1]),
  'footer: directory at the end again': patched(stream, [-1024 + GD, 8, -1n]),
  'footer: version': patched(stream, [-1024 + VERSION, 4, 9]),
  'a stream of 1024 bytes': stream.subarray(0, 1024),
  'a stream cut in its middle': stream.subarray(0, stream.length - 700),
  'other compression': patched(stream, [-1024 + 77, 2, 2]),
  'header alone': sparse.subarray(0, 512),
  'four bytes': sparse.subarray(0, 4),
  'no descriptor': Buffer.concat([
    sparse.subarray(0, 512),
    Buffer.alloc(20 * 512),
    sparse.subarray(21 * 512),
  ]),
  'descriptor without parentCID': hosted({ capacity: 128_000, grains, descriptor: 'CID=1\n' }),
  'descriptor without number': hosted({ capacity: 128_000, grains, descriptor: 'CID=x\nparentCID=1\n' }),
  'parent name without end': hosted({
    capacity: 128_000,
    grains,
    descriptor: 'CID=1\nparentCID=1\nparentFileNameHint="abc',
  }),
  'parent name of 4095': parentOf('a'.repeat(4095)),
  'parent name of 4096': parentOf('a'.repeat(4096)),
  'COWD alone': cow,
  'COWD with ids': Buffer.concat([
    cow.subarray(0, 512),
    Buffer.from('CID=1\nparentCID=2\n\0'),
    cow.subarray(512 + 19),
  ]),
  empty: Buffer.alloc(0),
  'two bytes': Buffer.from('ab'),
  zeros: Buffer.alloc(4096),
};

describeInterop('vmdk: hostile headers', () => {
  for (const [what, image] of Object.entries(HEADERS)) {
    test(what, async () => {
      make('m.vmdk', image);
      expect(await ourError('m.vmdk')).toBe(theirError('m.vmdk'));
    });
  }
});

const SE: Readonly<Record<string, Buffer>> = {
  magic: patched(se, [0, 8, 1]),
  version: patched(se, [8, 8, 1]),
  'grain size': patched(se, [24, 8, 16]),
  'table size': patched(se, [32, 8, 128]),
  flags: patched(se, [40, 8, 7]),
  reserved: patched(se, [48, 8, 7], [72, 8, -1n]),
  padding: patched(se, [300, 4, 1]),
  'volatile magic': patched(se, [512, 8, 1]),
  journal: patched(se, [512 + 24, 8, 1]),
  'volatile padding': patched(se, [512 + 100, 4, 1]),
  'volatile header past the end': patched(se, [80, 8, 1n << 30n]),
  'directory too long': patched(se, [136, 8, 1 << 20]),
  'directory at no offset': patched(se, [128, 8, 1n << 54n]),
  'directory past the end': patched(se, [128, 8, 1n << 30n]),
};

describeInterop('vmdk: hostile seSparse headers', () => {
  for (const [what, image] of Object.entries(SE)) {
    test(what, async () => {
      make('x.vmdk', image);
      make('m.vmdk', descriptor({ type: 'seSparse', lines: ['RW 100000 SESPARSE "x.vmdk"'] }));
      expect(await ourError('m.vmdk')).toBe(theirError('m.vmdk'));
    });
  }
});

const flatLine = 'RW 8 FLAT "x.bin" 0';
const DESCRIPTORS: Readonly<Record<string, string>> = {
  'no type': 'version=1\nCID=1\nparentCID=2\n',
  'type without end': 'version=1\nCID=1\nparentCID=2\ncreateType="monolithicFlat',
  'type of 200': descriptor({ type: 'x'.repeat(200), lines: [flatLine] }),
  'unknown type': descriptor({ type: 'fullDevice', lines: [flatLine] }),
  'flat without offset': descriptor({ type: 'vmfs', lines: ['RW 8 FLAT "x.bin"'] }),
  'flat with negative offset': descriptor({ type: 'vmfs', lines: ['RW 8 FLAT "x.bin" -1'] }),
  'VMFS with offset': descriptor({ type: 'vmfs', lines: ['RW 8 VMFS "x.bin" 0'] }),
  'sparse with offset': descriptor({ type: 'vmfs', lines: ['RW 8 SPARSE "x.bin" 0'] }),
  'missing file': descriptor({ type: 'vmfs', lines: ['RW 8 FLAT "none.bin" 0'] }),
  'no sparse file': descriptor({ type: 'vmfs', lines: ['RW 8 SPARSE "x.bin"'] }),
  'empty sparse file': descriptor({ type: 'vmfs', lines: ['RW 8 SPARSE "empty.bin"'] }),
  'too large': descriptor({ type: 'vmfs', lines: ['RW 9223372036854775807 FLAT "x.bin" 0'] }),
  'too large together': descriptor({
    type: 'vmfs',
    lines: ['RW 18014398509481983 FLAT "x.bin" 0', 'RW 18014398509481983 FLAT "x.bin" 0'],
  }),
  'no ids': `version=1\ncreateType="vmfs"\n${flatLine}\n`,
  'an extent of itself': descriptor({ type: 'vmfs', lines: ['RW 8 FLAT "m.vmdk" 0'] }),
  'tabs and line ends': descriptor({ type: 'vmfs', lines: ['RW\t8\tFLAT\t"x.bin"\t0'] }).replaceAll(
    '\n',
    '\r\n',
  ),
};

describeInterop('vmdk: hostile descriptors', () => {
  for (const [what, text] of Object.entries(DESCRIPTORS)) {
    test(what, async () => {
      make('x.bin', Buffer.alloc(4096));
      make('empty.bin', '');
      make('m.vmdk', text);
      expect(await ourError('m.vmdk')).toBe(theirError('m.vmdk'));
    });
  }
});

/** What the reference's `map` ends with, and our first failure to map or read. */
describeInterop('vmdk: hostile tables and grains', () => {
  const compressed = hosted({ capacity: 256, grains: grainsOf([0, stamp(65536, 1)]), compress: true });
  const table = compressed.readUInt32LE(Number(compressed.readBigUInt64LE(GD)) * 512) * 512;
  const grainAt = compressed.readUInt32LE(table) * 512;
  const cases: Readonly<Record<string, Buffer>> = {
    'marker size 0': patched(compressed, [grainAt + 8, 4, 0]),
    'marker size 2^32-1': patched(compressed, [grainAt + 8, 4, 0xffffffff]),
    'marker size above two grains': patched(compressed, [grainAt + 8, 4, 131073]),
    'marker size cut': patched(compressed, [grainAt + 8, 4, 20]),
    'not a stream': patched(compressed, [grainAt + 12, 4, 0x12345678]),
    'damaged stream': patched(compressed, [grainAt + 30, 4, 0xffffffff]),
    'grain past the end': patched(compressed, [table, 4, 0xfffffff0]),
  };
  for (const [what, image] of Object.entries(cases)) {
    test(`compressed: ${what}`, async () => {
      make('m.vmdk', image);
      const { status, stderr } = run(reference.qemuImg!, ['convert', '-O', 'raw', 'm.vmdk', 'o.raw'], {
        cwd: dir,
      });
      expect(status).toBe(1);
      await expect(withNode('m.vmdk', (node) => readAll(node))).rejects.toMatchObject({
        name: 'ImageError',
        kind: 'corrupt',
        message: stderr.trim().split(': ').at(-1),
      });
    });
  }

  const seTable = (entry: bigint): Buffer => {
    const number = Number(se.readBigUInt64LE(1024) & 0xffffffffn);
    return patched(se, [(Number(se.readBigUInt64LE(144)) + number * 64) * 512 + 8, 8, entry]);
  };
  const broken: Readonly<Record<string, Buffer>> = {
    'seSparse directory entry without mark': patched(se, [1024, 8, 1]),
    'seSparse directory entry beyond 32 bits of sectors': patched(se, [1024, 8, 0x10000000ffffffffn]),
    'seSparse unallocated grain with bits': seTable(5n),
    'seSparse grain of no kind': seTable(0x4000000000000000n),
    'seSparse short directory': patched(se, [16, 8, 64n * 4096n * 8n + 1n]),
    'COWD short directory': patched(cow, [24, 4, 1]),
  };
  for (const [what, image] of Object.entries(broken)) {
    test(what, async () => {
      make('x.vmdk', image);
      const type = what.startsWith('COWD') ? 'VMFSSPARSE' : 'SESPARSE';
      make('m.vmdk', descriptor({ type: 'seSparse', lines: [`RW 100000 ${type} "x.vmdk"`] }));
      const { status, stderr } = run(reference.qemuImg!, ['convert', '-O', 'raw', 'm.vmdk', 'o.raw'], {
        cwd: dir,
      });
      expect(status).toBe(1);
      expect(stderr).toContain('error while reading block status at offset ');
      const offset = Number(/at offset (\d+)/.exec(stderr)?.[1]);
      await withNode('m.vmdk', async (node) => {
        await expect(readAll(node, offset, 512)).rejects.toMatchObject({
          kind: 'corrupt',
          context: { errno: 'EIO' },
        });
        if (offset > 0) await readAll(node, 0, offset);
      });
    });
  }
});

describeInterop('vmdk: check', () => {
  const check = (name: string) => run(reference.qemuImg!, ['check', '-f', 'vmdk', name], { cwd: dir });
  const ours = (name: string) => {
    const lines: string[] = [];
    return withNode(name, (node) =>
      node.checker!.check({ repair: { leaks: false, errors: false }, report: (line) => lines.push(line) }),
    ).then(
      (result) => ({ result, lines, message: undefined }),
      (error: ImageError) => ({ result: undefined, lines, message: error.message }),
    );
  };

  test('a sound image', async () => {
    make('m.vmdk', sparse);
    expect(check('m.vmdk').status).toBe(0);
    expect((await ours('m.vmdk')).result?.corruptions).toBe(0);
  });

  test.each([0, 65536, 65536 + 512, 131072 - 512])('a file that is %i bytes short', async (short) => {
    // Four grains one after another, the last one first in the file.
    const own = grainsOf(
      [3, stamp(65536, 4)],
      [0, stamp(65536, 1)],
      [1, stamp(65536, 2)],
      [2, stamp(65536, 3)],
    );
    const whole = hosted({ capacity: 512, grains: own });
    make('m.vmdk', whole.subarray(0, whole.length - short));
    const { stderr, stdout } = check('m.vmdk');
    const { lines, message } = await ours('m.vmdk');
    expect(lines).toEqual(/^ERROR.*$/m.exec(stderr + stdout)?.slice(0, 1) ?? []);
    expect(message).toBe(/Check failed: (.*)$/m.exec(stderr)?.[1]);
  });

  test('a directory that is too short', async () => {
    make('x.vmdk', patched(cow, [24, 4, 1]));
    make('m.vmdk', descriptor({ type: 'vmfsSparse', lines: ['RW 10000 VMFSSPARSE "x.vmdk"'] }));
    const { stderr } = check('m.vmdk');
    const { lines, message } = await ours('m.vmdk');
    expect(lines).toEqual(/^ERROR.*$/m.exec(stderr)?.slice(0, 1));
    expect(message).toBe(/Check failed: (.*)$/m.exec(stderr)?.[1]);
  });
});
