/** Hand-made VMDK images, from the layouts in the specifications, and a folder in memory to open them from. */
import { deflateSync } from 'node:zlib';
import { ImageError } from '../../src/engine/error.js';
import { vmdk } from '../../src/engine/formats/vmdk/index.js';
import type { FormatNode, OpenContext } from '../../src/engine/node/driver.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';

const SECTOR = 512;

/** A grain's content: its own number in every 4 KiB block, so that aliasing shows. */
export function stamp(length: number, seed: number): Buffer {
  const out = Buffer.alloc(length, (seed % 251) + 1);
  for (let at = 0; at + 8 <= length; at += 4096) {
    out.writeUInt32LE(seed, at);
    out.writeUInt32LE(at, at + 4);
  }
  return out;
}

/** What each grain of an extent is; grains that are not named are holes. */
export type Grains = ReadonlyMap<number, Buffer | 'zero' | 'unmapped'>;

export function grainsOf(...entries: readonly (readonly [number, Buffer | 'zero' | 'unmapped'])[]) {
  return new Map(entries);
}

export interface DescriptorParts {
  readonly type?: string;
  readonly cid?: string;
  readonly parentCid?: string;
  readonly parent?: string;
  readonly lines?: readonly string[];
}

export function descriptor(parts: DescriptorParts = {}): string {
  return [
    '# Disk DescriptorFile',
    'version=1',
    `CID=${parts.cid ?? 'fffffffe'}`,
    `parentCID=${parts.parentCid ?? 'ffffffff'}`,
    `createType="${parts.type ?? 'monolithicSparse'}"`,
    ...(parts.parent === undefined ? [] : [`parentFileNameHint="${parts.parent}"`]),
    '# Extent description',
    ...(parts.lines ?? []),
    '# The Disk Data Base',
    '#DDB',
    '',
    'ddb.virtualHWVersion = "4"',
    '',
  ].join('\n');
}

export interface HostedParts {
  readonly capacity: number;
  readonly grains: Grains;
  readonly grainSectors?: number;
  readonly entriesPerTable?: number;
  readonly version?: number;
  readonly flags?: number;
  readonly descriptor?: string;
  readonly compress?: boolean;
  /** Default true where `compress`. */
  readonly markers?: boolean;
  /** Directory at the end, found through a footer. */
  readonly footer?: boolean;
}

/** A KDMV extent: header, descriptor, [directory, tables,] grains[, directory, tables, footer]. */
export function hosted(parts: HostedParts): Buffer {
  const grainSectors = parts.grainSectors ?? 128;
  const entries = parts.entriesPerTable ?? 512;
  const compress = parts.compress ?? false;
  const markers = parts.markers ?? compress;
  const footer = parts.footer ?? false;
  const count = Math.ceil(parts.capacity / grainSectors);
  const tables = Math.ceil(count / entries);
  const tableSectors = Math.ceil((entries * 4) / SECTOR);
  const directorySectors = Math.ceil((tables * 4) / SECTOR);
  const pieces: Buffer[] = [];
  let sector = 0;
  const put = (piece: Buffer): number => {
    const padded = Buffer.alloc(Math.ceil(piece.length / SECTOR) * SECTOR);
    piece.copy(padded);
    pieces.push(padded);
    const at = sector;
    sector += padded.length / SECTOR;
    return at;
  };
  const marker = (val: number, type: number): Buffer => {
    const out = Buffer.alloc(SECTOR);
    out.writeBigUInt64LE(BigInt(val), 0);
    out.writeUInt32LE(type, 12);
    return out;
  };
  const header = Buffer.alloc(SECTOR);
  put(header);
  const text = Buffer.alloc(20 * SECTOR);
  text.write(parts.descriptor ?? descriptor());
  put(text);
  const directory = Buffer.alloc(directorySectors * SECTOR);
  const table = Buffer.alloc(Math.max(tables, 1) * tableSectors * SECTOR);
  let directoryAt = 0;
  let tablesAt = 0;
  if (!footer) {
    directoryAt = put(directory);
    tablesAt = put(table);
  }
  const overHead = sector;
  for (const [index, grain] of parts.grains) {
    let at: number;
    if (typeof grain === 'string') at = 1;
    else if (!compress) at = put(grain);
    else {
      const packed = deflateSync(grain);
      const mark = Buffer.alloc(markers ? 12 : 0);
      if (markers) {
        mark.writeBigUInt64LE(BigInt(index * grainSectors), 0);
        mark.writeUInt32LE(packed.length, 8);
      }
      at = put(Buffer.concat([mark, packed]));
    }
    table.writeUInt32LE(at, Math.floor(index / entries) * tableSectors * SECTOR + (index % entries) * 4);
  }
  if (footer) {
    put(marker(table.length / SECTOR, 1));
    tablesAt = put(table);
    put(marker(directory.length / SECTOR, 2));
    directoryAt = put(directory);
  }
  const used = new Set([...parts.grains.keys()].map((index) => Math.floor(index / entries)));
  for (const index of used) directory.writeUInt32LE(tablesAt + index * tableSectors, index * 4);
  const fill = (into: Buffer, gd: bigint) => {
    into.write('KDMV', 0, 'latin1');
    into.writeUInt32LE(parts.version ?? (compress ? 3 : 1), 4);
    into.writeUInt32LE(parts.flags ?? (compress ? 0x10001 | (markers ? 0x20000 : 0) : 5), 8);
    into.writeBigUInt64LE(BigInt(parts.capacity), 12);
    into.writeBigUInt64LE(BigInt(grainSectors), 20);
    into.writeBigUInt64LE(1n, 28);
    into.writeBigUInt64LE(20n, 36);
    into.writeUInt32LE(entries, 44);
    into.writeBigUInt64LE(gd, 56);
    into.writeBigUInt64LE(BigInt(overHead), 64);
    into.write('\n \r\n', 73, 'latin1');
    into.writeUInt16LE(compress ? 1 : 0, 77);
  };
  fill(header, footer ? 2n ** 64n - 1n : BigInt(directoryAt));
  if (footer) {
    put(marker(1, 3));
    const again = Buffer.alloc(SECTOR);
    fill(again, BigInt(directoryAt));
    put(again);
    put(marker(0, 0));
  }
  // Pieces were filled after they had been copied.
  return assemble(pieces, [
    [0, header],
    ...(footer
      ? []
      : ([
          [directoryAt, directory],
          [tablesAt, table],
        ] as [number, Buffer][])),
    ...(footer
      ? ([
          [tablesAt, table],
          [directoryAt, directory],
        ] as [number, Buffer][])
      : []),
  ]);
}

function assemble(pieces: readonly Buffer[], late: readonly [number, Buffer][]): Buffer {
  const whole = Buffer.concat(pieces);
  for (const [sector, piece] of late) piece.copy(whole, sector * SECTOR);
  return whole;
}

/** A COWD extent (vmfsSparse): header of four sectors, directory, tables of 4096 entries, grains. */
export function cowd(parts: { capacity: number; grains: Grains; grainSectors?: number }): Buffer {
  const grainSectors = parts.grainSectors ?? 1;
  const tables = Math.ceil(parts.capacity / grainSectors / 4096);
  const directorySectors = Math.ceil((tables * 4) / SECTOR);
  const tableBytes = 4096 * 4;
  const firstTable = 4 + directorySectors;
  const firstGrain = firstTable + (tables * tableBytes) / SECTOR;
  const out = Buffer.alloc((firstGrain + parts.grains.size * grainSectors) * SECTOR);
  out.write('COWD', 0, 'latin1');
  for (const [i, v] of [1, 3, parts.capacity, grainSectors, 4, tables, firstGrain].entries()) {
    out.writeUInt32LE(v, 4 + 4 * i);
  }
  let next = firstGrain;
  for (const [index, grain] of parts.grains) {
    if (typeof grain === 'string') throw new Error('COWD knows no zeroed grains');
    const table = Math.floor(index / 4096);
    const tableAt = firstTable + (table * tableBytes) / SECTOR;
    out.writeUInt32LE(tableAt, 4 * SECTOR + table * 4);
    out.writeUInt32LE(next, tableAt * SECTOR + (index % 4096) * 4);
    grain.copy(out, next * SECTOR);
    next += grainSectors;
  }
  return out;
}

/** A seSparse extent: constant header, volatile header, directory, tables of 4096 64-bit entries, grains of 4 KiB. */
export function seSparse(parts: { capacity: number; grains: Grains }): Buffer {
  const tables = Math.ceil(parts.capacity / 8 / 4096);
  const directorySectors = Math.ceil((tables * 8) / SECTOR);
  const directoryAt = 2;
  const tablesAt = directoryAt + directorySectors;
  const grainsAt = tablesAt + tables * 64;
  const out = Buffer.alloc((grainsAt + parts.grains.size * 8) * SECTOR);
  const put = (field: number, value: bigint | number) => out.writeBigUInt64LE(BigInt(value), field * 8);
  put(0, 0xcafebabe);
  put(1, 0x0000000200000001n);
  put(2, parts.capacity);
  put(3, 8);
  put(4, 64);
  put(10, 1);
  put(11, 1);
  put(16, directoryAt);
  put(17, directorySectors);
  put(18, tablesAt);
  put(19, tables * 64);
  put(24, grainsAt);
  put(25, parts.grains.size * 8);
  out.writeBigUInt64LE(0xcafecafen, SECTOR);
  let next = 0;
  // Tables are numbered from the back, to tell numbers from places in the directory.
  const tableNumber = (table: number) => tables - 1 - table;
  for (const [index, grain] of parts.grains) {
    const table = Math.floor(index / 4096);
    out.writeBigUInt64LE(0x1000000000000000n | BigInt(tableNumber(table)), directoryAt * SECTOR + table * 8);
    const entryAt = (tablesAt + tableNumber(table) * 64) * SECTOR + (index % 4096) * 8;
    if (grain === 'unmapped') out.writeBigUInt64LE(0x1000000000000000n, entryAt);
    else if (grain === 'zero') out.writeBigUInt64LE(0x2000000000000000n, entryAt);
    else {
      const number = BigInt(next);
      const entry = 0x3000000000000000n | ((number & 0xfffn) << 48n) | (number >> 12n);
      out.writeBigUInt64LE(entry, entryAt);
      grain.copy(out, (grainsAt + next * 8) * SECTOR);
      next++;
    }
  }
  return out;
}

export interface Folder {
  readonly opened: { readonly name: string; readonly storage: MemoryStorage; closed: boolean }[];
  context(name: string, extra?: Partial<OpenContext>): OpenContext;
  open(name: string, extra?: Partial<OpenContext>): Promise<FormatNode>;
}

/** Files in memory; the first is opened as an image, others as its children, by name. */
export function folder(files: Readonly<Record<string, Uint8Array | string | MemoryStorage>>): Folder {
  const storageOf = (name: string): MemoryStorage | undefined => {
    const content = files[name];
    if (content === undefined || content instanceof MemoryStorage) return content;
    const raw = typeof content === 'string' ? Buffer.from(content, 'latin1') : content;
    return new MemoryStorage(raw, { filename: name, writable: false });
  };
  const opened: Folder['opened'] = [];
  const self: Folder = {
    opened,
    context: (name, extra = {}) => ({
      file: storageOf(name)!,
      writable: false,
      options: {},
      forCheck: false,
      metadataOnly: false,
      async openChild(_child, recorded) {
        const storage = recorded === undefined ? undefined : storageOf(recorded);
        if (storage === undefined) {
          throw new ImageError('not-found', `Could not open '${recorded}': No such file or directory`);
        }
        const record = { name: recorded!, storage, closed: false };
        const close = storage.close.bind(storage);
        storage.close = async () => {
          record.closed = true;
          await close();
        };
        opened.push(record);
        return storage;
      },
      warn: () => {},
      ...extra,
    }),
    open: (name, extra) => vmdk.open(self.context(name, extra)),
  };
  return self;
}

/** The first `length` guest bytes from `at`, as `map` says they are stored; what is in no layer reads as zeros. */
export async function readAll(node: FormatNode, at = 0, length = node.size - at): Promise<Buffer> {
  const out = Buffer.alloc(length);
  for (let done = 0; done < length; ) {
    const extent = await node.map({ at: at + done, length: length - done });
    if (extent.length <= 0 || extent.length > length - done) throw new Error(`bad run of ${extent.length}`);
    const part = out.subarray(done, done + extent.length);
    if (extent.kind === 'data') await extent.storage.read(extent.at, part);
    else if (extent.kind === 'packed') await extent.read(part);
    done += extent.length;
  }
  return out;
}

/** What `readAll` must give for these grains. */
export function expected(size: number, grain: number, grains: Grains): Buffer {
  const out = Buffer.alloc(size);
  for (const [index, content] of grains) {
    if (typeof content !== 'string') content.copy(out, index * grain);
  }
  return out;
}
