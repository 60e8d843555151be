import { describe, expect, it } from 'vitest';
import { parallels } from '../../src/engine/formats/parallels/index.js';
import { Header, IN_USE } from '../../src/engine/formats/parallels/layout.js';
import type { FormatNode } from '../../src/engine/node/driver.js';
import { ImageNode } from '../../src/engine/node/image.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { contentOf, extentsOf, memoryContext } from '../support/open-memory.js';
import { CLUSTER, parallelsImage } from './parallels-images.js';

const open = (file: Uint8Array) => parallels.open(memoryContext(file));

async function check(file: Uint8Array, repair = false) {
  const storage = new MemoryStorage(file);
  const node = await parallels.open(memoryContext(storage, { writable: repair, forCheck: true }));
  const lines: string[] = [];
  const how = { leaks: repair, errors: repair };
  const result = await node.checker!.check({ repair: how, report: (line) => lines.push(line) });
  await node.close();
  return { result, lines, storage };
}

async function writable(
  storage: MemoryStorage,
  overrides = {},
): Promise<{ image: ImageNode; said: string[] }> {
  const said: string[] = [];
  const context = memoryContext(storage, { writable: true, say: (line) => said.push(line), ...overrides });
  const format = await parallels.open(context);
  const parts = { filename: 'x', path: undefined, driver: parallels, format, file: storage };
  return { image: new ImageNode({ ...parts, backing: undefined, writable: true }), said };
}

describe('parallels: reading', () => {
  for (const v1 of [true, false]) {
    it(`maps clusters, ${v1 ? 'old magic' : 'new magic'}`, async () => {
      const file = parallelsImage({ v1, bat: [2, 3, 0, 0, 1] });
      expect(parallels.probe(file, 'x', file.length)).toBe(100);
      const node = await open(file);
      expect(node.size).toBe(5 * CLUSTER);
      const extents = await extentsOf(node);
      expect(extents.map(({ kind, length }) => [kind, length / CLUSTER])).toEqual([
        ['data', 2],
        ['backing', 2],
        ['data', 1],
      ]);
      const content = await contentOf(node, 1000);
      expect([...new Set(content.subarray(0, CLUSTER))]).toEqual([2]);
      expect(content[CLUSTER]).toBe(3);
      expect(content[2 * CLUSTER]).toBe(0);
      expect(content[4 * CLUSTER + 4095]).toBe(1);
    });
  }

  it('reads bitmaps of the extension', async () => {
    const node = await open(parallelsImage({ bat: [0, 1, 0], clusters: 4, extension: 2 }));
    expect(node.bitmapStore?.list()).toEqual([]);
    const content = await node.bitmapStore!.content('00112233-4455-6677-8899-aabbccddeeff');
    expect([...content.runs()]).toEqual([
      [512, 1536],
      [4608, 5120],
    ]);
    await expect(node.bitmapStore!.content('x')).rejects.toThrow("Dirty bitmap 'x' not found");
  });

  const refused: readonly [string, Partial<ReturnType<typeof Header.decode>>, string][] = [
    ['magic', { magic: Buffer.from('WithoutFreeSpacE') }, 'Image not in Parallels format'],
    ['version', { version: 3 }, 'Image not in Parallels format'],
    ['no tracks', { tracks: 0 }, 'Invalid image: Zero sectors per track'],
    ['large clusters', { tracks: 0x7fff_ffff }, 'Invalid image: Too big cluster'],
    ['large BAT', { batEntries: 0x2000_0000 }, 'Catalog too large'],
    ['large disk', { sectors: 2n ** 60n }, 'Could not refresh total sector count: File too large'],
    ['extension beyond all', { extOff: 2n ** 60n }, 'Invalid image: Too big offset'],
    ['extension that is none', { extOff: 8n }, 'Wrong parallels Format Extension magic: 0x101010101010101'],
  ];
  for (const [name, header, message] of refused) {
    it(`refuses ${name}`, async () => {
      await expect(open(parallelsImage({ bat: [1, 0], header }))).rejects.toThrow(message);
    });
  }

  it('a BAT of 2 GiB that the file does not have takes no memory', async () => {
    const node = await open(
      parallelsImage({ bat: [1], header: { batEntries: 0x1fff_ffff, sectors: 2n ** 31n } }),
    );
    await extentsOf({ ...node, size: CLUSTER * 100, map: (range) => node.map(range) } as FormatNode);
    await node.close();
  });
});

describe('parallels: check', () => {
  it('finds nothing', async () => {
    const { result, lines } = await check(parallelsImage({ bat: [2, 3, 0, 1] }));
    expect(lines).toEqual([]);
    expect(result).toMatchObject({ corruptions: 0, leaks: 0, totalClusters: 4, allocatedClusters: 3 });
  });

  it('repairs everything at once', async () => {
    const broken = parallelsImage({
      bat: [2, 2, 9, 1],
      clusters: 6,
      header: { inUse: IN_USE, dataOff: 1000 },
    });
    const { result, lines, storage } = await check(broken, true);
    expect(lines).toEqual([
      'Repairing image was not closed correctly',
      'Repairing data_off field has incorrect value',
      'Repairing cluster 2 is outside image',
      'Repairing space leaked at the end of the image 12288',
      'Repairing duplicate offset in BAT entry 1',
    ]);
    expect(result).toMatchObject({ corruptions: 4, corruptionsFixed: 4, leaks: 3, leaksFixed: 3 });
    const again = await check(storage.bytes());
    expect(again.lines).toEqual([]);
    const content = await contentOf(await open(storage.bytes()));
    expect([0, 1, 2, 3].map((n) => content[n * CLUSTER])).toEqual([2, 2, 0, 1]);
  });

  it('breaks off where the last used entry is a duplicate', async () => {
    await expect(check(parallelsImage({ bat: [1, 1] }))).rejects.toThrow('Device or resource busy');
    const { result } = await check(parallelsImage({ bat: [1, 1, 2] }));
    expect(result.corruptions).toBe(1);
  });
});

describe('parallels: writing', () => {
  it('repairs what was left behind, writes, and closes the image', async () => {
    const storage = new MemoryStorage(
      parallelsImage({ bat: [1, 0, 0, 7], header: { inUse: IN_USE } }).subarray(0, 2 * CLUSTER),
    );
    const { image, said } = await writable(storage);
    expect(said).toEqual([
      'Repairing image was not closed correctly',
      'Repairing cluster 3 is outside image',
    ]);
    await image.write(CLUSTER + 100, Buffer.alloc(50, 0xee));
    expect(Header.decode(storage.bytes()).inUse).toBe(IN_USE);
    await image.close();
    expect(Header.decode(storage.bytes()).inUse).toBe(0);
    const content = await contentOf(await open(storage.bytes()));
    expect(content[CLUSTER + 99]).toBe(0);
    expect(content[CLUSTER + 100]).toBe(0xee);
    expect(content[0]).toBe(1);
    expect((await check(storage.bytes())).lines).toEqual([]);
  });

  it('uses the place of discarded clusters again, without their old bytes', async () => {
    const storage = new MemoryStorage(parallelsImage({ bat: [1, 2, 0, 3] }));
    const { image } = await writable(storage);
    await image.zero({ at: 0, length: 2 * CLUSTER });
    await image.flush();
    await image.write(2 * CLUSTER + 512, Buffer.alloc(512, 9));
    await image.write(0, Buffer.alloc(CLUSTER, 8));
    await image.close();
    expect(storage.size).toBe(4 * CLUSTER);
    const content = await contentOf(await open(storage.bytes()));
    expect(
      [0, CLUSTER, 2 * CLUSTER, 2 * CLUSTER + 512, 2 * CLUSTER + 1024, 3 * CLUSTER].map((at) => content[at]),
    ).toEqual([8, 0, 0, 9, 0, 3]);
    expect((await check(storage.bytes())).lines).toEqual([]);
  });

  it('drops an extension that is no longer true, with the first write only', async () => {
    const bytes = parallelsImage({ bat: [0, 1, 0], clusters: 4, extension: 2 });
    const storage = new MemoryStorage(bytes);
    await (await writable(storage)).image.close();
    expect(Header.decode(storage.bytes()).extOff).toBe(16n);
    const second = new MemoryStorage(storage.bytes());
    const { image } = await writable(second);
    await image.write(0, Buffer.alloc(10, 1));
    await image.close();
    expect(Header.decode(second.bytes()).extOff).toBe(0n);
  });

  it('never writes into the metadata', async () => {
    const storage = new MemoryStorage(parallelsImage({ v1: true, bat: [1, 0] }));
    const raw = storage.bytes();
    // Sector 0 as a cluster that is in the file: the check before writing lets it go.
    new DataView(raw.buffer).setUint32(Header.size + 4, 1, true);
    const image = (await writable(new MemoryStorage(raw))).image;
    await image.write(CLUSTER, Buffer.alloc(512, 5));
    await image.close();
    expect(Header.decode((image.file as MemoryStorage).bytes()).version).toBe(2);
  });
});
