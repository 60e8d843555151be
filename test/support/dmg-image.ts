/** Makes dmg images by hand: chunk tables in a property list or a resource fork, and the trailer. */
import {
  CHUNK,
  KOLY,
  KOLY_MAGIC,
  MISH,
  MISH_MAGIC,
  TERMINATOR,
} from '../../src/engine/formats/dmg/layout.js';

export interface ChunkSpec {
  readonly kind: number;
  /** Guest sectors. */
  readonly sectors: number;
  /** Stored bytes, appended to the data fork. */
  readonly stored?: Uint8Array;
  /** Wrong values on purpose. */
  readonly override?: {
    readonly sector?: bigint;
    readonly sectorCount?: bigint;
    readonly dataOffset?: bigint;
    readonly dataLength?: bigint;
  };
}

export interface PartitionSpec {
  readonly firstSector: number;
  readonly chunks: readonly ChunkSpec[];
}

export interface ImageSpec {
  readonly sectors: number;
  readonly partitions: readonly PartitionSpec[];
  readonly place?: 'xml' | 'resource-fork';
  /** Bytes before the data fork. */
  readonly lead?: number;
  /** Bytes after the trailer. */
  readonly trail?: number;
}

/** Offsets of the structures in the image, for tests that damage them. */
export interface DmgImage {
  readonly bytes: Uint8Array;
  readonly koly: number;
  readonly tables: number;
}

function mish(partition: PartitionSpec, store: (stored: Uint8Array) => number): Uint8Array {
  const entries = [...partition.chunks, { kind: TERMINATOR, sectors: 0 } satisfies ChunkSpec];
  const out = new Uint8Array(MISH.size + entries.length * CHUNK.size);
  let sector = 0;
  entries.forEach((chunk, i) => {
    const stored: Uint8Array | undefined = chunk.stored;
    const at = stored === undefined ? 0 : store(stored);
    CHUNK.encodeInto(
      {
        kind: chunk.kind,
        sector: BigInt(sector),
        sectorCount: BigInt(chunk.sectors),
        dataOffset: BigInt(at),
        dataLength: BigInt(stored?.byteLength ?? 0),
        ...chunk.override,
      },
      out,
      MISH.size + i * CHUNK.size,
    );
    sector += chunk.sectors;
  });
  MISH.encodeInto(
    {
      magic: MISH_MAGIC,
      version: 1,
      firstSector: BigInt(partition.firstSector),
      sectorCount: BigInt(sector),
      chunkCount: entries.length,
    },
    out,
  );
  return out;
}

function propertyList(tables: readonly Uint8Array[]): Uint8Array {
  const entries = tables.map((table, id) => {
    const lines =
      Buffer.from(table)
        .toString('base64')
        .match(/.{1,52}/g) ?? [];
    return `<dict><key>Data</key><data>\n\t\t\t\t${lines.join('\n\t\t\t\t')}\n\t\t\t\t</data><key>ID</key><string>${id}</string></dict>`;
  });
  return Buffer.from(
    `<?xml version="1.0" encoding="UTF-8"?>\n<plist version="1.0"><dict><key>resource-fork</key><dict><key>blkx</key><array>${entries.join('\n')}</array><key>plst</key><array><dict><key>Data</key><data>AAAA</data></dict></array></dict></dict></plist>\n`,
  );
}

function resourceFork(tables: readonly Uint8Array[]): Uint8Array {
  const parts: Uint8Array[] = [];
  for (const table of [Uint8Array.of(1, 2, 3), ...tables]) {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(table.byteLength);
    parts.push(length, table);
  }
  const data = Buffer.concat(parts);
  const header = Buffer.alloc(256);
  header.writeUInt32BE(256, 0);
  header.writeUInt32BE(256 + data.byteLength, 4);
  header.writeUInt32BE(data.byteLength, 8);
  header.writeUInt32BE(30, 12);
  return Buffer.concat([header, data, Buffer.alloc(30)]);
}

export function buildDmg(spec: ImageSpec): DmgImage {
  const lead = spec.lead ?? 0;
  const fork: Uint8Array[] = [new Uint8Array(lead)];
  let forkSize = 0;
  const tables = spec.partitions.map((partition) =>
    mish(partition, (stored) => {
      fork.push(stored);
      forkSize += stored.byteLength;
      return forkSize - stored.byteLength;
    }),
  );
  const xml = (spec.place ?? 'xml') === 'xml';
  const resources = xml ? propertyList(tables) : resourceFork(tables);
  const at = BigInt(lead + forkSize);
  const length = BigInt(resources.byteLength);
  const koly = KOLY.encode({
    magic: KOLY_MAGIC,
    version: 4,
    headerSize: KOLY.size,
    flags: 1,
    dataForkOffset: BigInt(lead),
    dataForkLength: BigInt(forkSize),
    ...(xml ? { xmlOffset: at, xmlLength: length } : { resourceForkOffset: at, resourceForkLength: length }),
    segmentNumber: 1,
    segmentCount: 1,
    imageVariant: 1,
    sectorCount: BigInt(spec.sectors),
  });
  const bytes = Buffer.concat([...fork, resources, koly, new Uint8Array(spec.trail ?? 0)]);
  return { bytes, koly: lead + forkSize + resources.byteLength, tables: lead + forkSize };
}
