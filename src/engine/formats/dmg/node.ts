/** An open dmg image: where its guest bytes are. */
import { ImageError } from '../../error.js';
import type { Extent, FormatNode } from '../../node/driver.js';
import type { Range, Storage } from '../../storage/storage.js';
import { type ChunkTable, isPacked, rowAt } from './chunks.js';
import { ADC, BZIP2, IGNORE, LZFSE, LZMA, RAW, ZERO, ZLIB } from './layout.js';
import { Unpacker } from './unpack.js';

const KIND_NAMES: ReadonlyMap<number, string> = new Map([
  [ADC, 'ADC'],
  [ZLIB, 'zlib'],
  [BZIP2, 'bzip2'],
  [LZFSE, 'LZFSE'],
  [LZMA, 'LZMA'],
]);

/** An extent whose reading fails, while the rest of the image can be read. */
function unreadable(length: number, error: () => ImageError): Extent {
  return { kind: 'packed', length, read: () => Promise.reject(error()) };
}

export function dmgNode(file: Storage, size: number, table: ChunkTable): FormatNode {
  const unpacker = new Unpacker(file, table);
  const { kinds, starts, ends, offsets, lengths, unpacked } = table;

  /** Why a chunk's stored bytes cannot be what they should be; undefined where they can. */
  const fault = (row: number): ImageError | undefined => {
    const kind = kinds[row]!;
    const where = `the chunk at guest offset ${starts[row]}`;
    if (kind !== RAW && !isPacked(kind)) {
      const name = KIND_NAMES.get(kind);
      const text = name === undefined ? `unknown type ${kind.toString(16)}` : `${name} compression`;
      return new ImageError('unsupported', `dmg: ${where} has ${text}, which is not supported`);
    }
    if (offsets[row]! + lengths[row]! > file.size) {
      return new ImageError('corrupt', `dmg: ${where} lies beyond the end of the file`);
    }
    if (kind === RAW && lengths[row]! < unpacked[row]!) {
      return new ImageError('corrupt', `dmg: ${where} is shorter than its sectors`);
    }
    return undefined;
  };

  return {
    size,
    unit: 1,
    children: new Map(),
    startsAsZero: false,
    opaque: true,
    map({ at, length }: Range): Extent {
      const row = rowAt(table, at);
      if (row < 0 || at >= ends[row]!) {
        const next = row + 1 < table.count ? starts[row + 1]! : size;
        return unreadable(
          Math.min(length, next - at),
          () => new ImageError('corrupt', `dmg: no chunk holds guest offset ${at}`),
        );
      }
      const kind = kinds[row]!;
      const run = Math.min(length, ends[row]! - at);
      if (kind === ZERO || kind === IGNORE) return { kind: 'zero', length: run };
      const error = fault(row);
      if (error !== undefined) return unreadable(run, () => error);
      const skip = at - starts[row]!;
      if (kind === RAW) return { kind: 'data', length: run, storage: file, at: offsets[row]! + skip };
      return { kind: 'packed', length: run, read: (into) => unpacker.read(row, skip, into) };
    },
    info: () => ({}),
    close: () => Promise.resolve(),
  };
}
