import { describe, expect, it } from 'vitest';
import { vdi } from '../../src/engine/formats/vdi/index.js';
import { BLOCK, DISCARDED, Header, TYPE_STATIC } from '../../src/engine/formats/vdi/layout.js';
import { ImageNode } from '../../src/engine/node/image.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { extentsOf, memoryContext } from '../support/open-memory.js';
import { vdiImage } from './vdi-images.js';

const open = (file: Uint8Array) => vdi.open(memoryContext(file));

async function check(file: Uint8Array) {
  const node = await open(file);
  const lines: string[] = [];
  const repair = { leaks: false, errors: false };
  const result = await node.checker!.check({ repair, report: (line) => lines.push(line) });
  return { result, lines };
}

async function writable(storage: MemoryStorage): Promise<ImageNode> {
  const format = await vdi.open(memoryContext(storage, { writable: true }));
  const parts = { filename: 'x', path: undefined, driver: vdi, format, file: storage };
  return new ImageNode({ ...parts, backing: undefined, writable: true });
}

describe('vdi: reading', () => {
  it('maps blocks', async () => {
    const file = vdiImage({ map: [1, 2, undefined, DISCARDED, 0] });
    expect(vdi.probe(file, 'x', file.length)).toBe(100);
    const node = await open(file);
    expect(node.info()).toEqual({ clusterSize: BLOCK, dirty: false });
    const extents = await extentsOf(node);
    expect(extents.map(({ kind, length }) => [kind, length / BLOCK])).toEqual([
      ['data', 2],
      ['zero', 2],
      ['data', 1],
    ]);
    expect(extents[2]).toMatchObject({ at: 1024 });
  });

  it("tells the host's holes of static images", async () => {
    const storage = new MemoryStorage(1024 + 2 * BLOCK);
    const bytes = vdiImage({ map: [0, 1], header: { imageType: TYPE_STATIC } });
    await storage.write(0, bytes.subarray(0, 1024));
    await storage.write(1024 + BLOCK, Buffer.alloc(BLOCK, 1));
    const node = await vdi.open(memoryContext(storage));
    const kinds = (await extentsOf(node)).map(({ kind }) => kind);
    expect(kinds).toContain('zero');
    expect(kinds).toContain('data');
    expect(node.locate!({ at: 0, length: 2 * BLOCK })).toMatchObject({ kind: 'data', length: 2 * BLOCK });
  });

  const refused: readonly [string, Partial<ReturnType<typeof Header.decode>>, string][] = [
    ['signature', { signature: 5 }, 'Image not in VDI format (bad signature 00000005)'],
    ['version', { version: 0x10002 }, 'unsupported VDI image (version 1.2)'],
    ['map offset', { mapOffset: 0x201 }, 'unsupported VDI image (unaligned block map offset 0x201)'],
    ['data offset', { dataOffset: 0x401 }, 'unsupported VDI image (unaligned data offset 0x401)'],
    ['sector size', { sectorSize: 4096 }, 'unsupported VDI image (sector size 4096 is not 512)'],
    ['block size', { blockSize: 65536 }, 'unsupported VDI image (block size 65536 is not 1048576)'],
    [
      'disk size',
      { diskSize: BigInt(2 * BLOCK + 1) },
      'unsupported VDI image (disk size 2097664, image bitmap has room for 2097152)',
    ],
    [
      'large disk',
      { diskSize: 2n ** 62n },
      'Unsupported VDI image size (size is 0x4000000000000000, max supported is 0x1fffff8000000)',
    ],
    [
      'many blocks',
      { blocksInImage: 0x2000_0000 },
      'unsupported VDI image (too many blocks 536870912, max is 536870784)',
    ],
    ['link UUID', { uuidLink: Buffer.alloc(16, 1) }, 'unsupported VDI image (non-NULL link UUID)'],
    ['parent UUID', { uuidParent: Buffer.alloc(16, 1) }, 'unsupported VDI image (non-NULL parent UUID)'],
  ];
  for (const [name, header, message] of refused) {
    it(`refuses ${name}`, async () => {
      await expect(open(vdiImage({ map: [0, undefined], header }))).rejects.toThrow(message);
    });
  }
});

describe('vdi: check', () => {
  it('finds what is wrong, in the words of the reference', async () => {
    const { result, lines } = await check(vdiImage({ map: [0, 9, 0, undefined], blocks: 1 }));
    expect(lines).toEqual([
      'ERROR: block index 1 too large, is 9',
      'ERROR: block index 0 also used by 0',
      'ERROR: allocated blocks mismatch, is 2, should be 3',
    ]);
    expect(result.corruptions).toBe(3);
  });

  it('a map that the file does not have takes neither time nor memory', async () => {
    const { result, lines } = await check(vdiImage({ map: [0], header: { blocksInImage: 0x1fff_ff80 } }));
    expect(lines.length).toBeLessThan(20_000);
    expect(result.corruptions).toBeGreaterThan(0x1fff_0000);
  });

  it('cannot be repaired', async () => {
    const storage = new MemoryStorage(vdiImage({ map: [0] }));
    const node = await vdi.open(memoryContext(storage, { writable: true, forCheck: true }));
    expect(node.checker).toBeUndefined();
  });
});

describe('vdi: writing', () => {
  it('fills new blocks, and counts them', async () => {
    const storage = new MemoryStorage(vdiImage({ map: [undefined, 0, DISCARDED] }));
    const image = await writable(storage);
    await image.write(100, Buffer.alloc(50, 7));
    await image.write(3 * BLOCK - 10, Buffer.alloc(10, 8));
    await image.write(BLOCK, Buffer.alloc(1, 9));
    await image.close();
    const bytes = storage.bytes();
    expect(Header.decode(bytes).blocksAllocated).toBe(3);
    expect(bytes.length).toBe(1024 + 3 * BLOCK);
    expect((await check(bytes)).lines).toEqual([]);
    expect([bytes[1024], bytes[1025], bytes[1024 + BLOCK + 100], bytes[1024 + 3 * BLOCK - 1]]).toEqual([
      9, 1, 7, 8,
    ]);
  });

  it('does not give out blocks that a wrong header does not count, and finds lost ones', async () => {
    for (const blocksAllocated of [0, 1, 3, 0xffff_ffff]) {
      const storage = new MemoryStorage(
        vdiImage({ map: [1, undefined, undefined], header: { blocksAllocated } }),
      );
      const image = await writable(storage);
      await image.write(BLOCK, Buffer.alloc(2 * BLOCK, 7));
      await image.close();
      const lines = (await check(storage.bytes())).lines.filter((line) => !line.includes('mismatch'));
      expect(lines).toEqual([]);
      expect(storage.bytes()[1024 + BLOCK]).toBe(2);
    }
  });

  it('never writes into the metadata', async () => {
    const storage = new MemoryStorage(vdiImage({ map: [undefined, 0], header: { dataOffset: 0 } }));
    const image = await writable(storage);
    await expect(image.write(BLOCK, Buffer.alloc(10))).rejects.toThrow("overlaps the image's metadata");
    await image.close();
  });

  it('zeros what is allocated, and allocates nothing for it', async () => {
    const storage = new MemoryStorage(vdiImage({ map: [undefined, 0, undefined] }));
    const image = await writable(storage);
    await image.zero({ at: 0, length: 3 * BLOCK });
    await image.close();
    expect(storage.bytes()[1024]).toBe(0);
    expect((await check(storage.bytes())).lines).toEqual([]);
  });
});
