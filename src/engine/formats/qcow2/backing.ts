/**
 * Changing what the header says of the backing file.
 *
 * A header is longer than a sector, and a crash may leave some of its sectors old and others new. So the change is made in
 * steps, each of which is one sector long or touches only bytes that nothing refers to: the new extensions and name are put
 * further up in the header cluster; the first sector is switched over to them, by an extension of an unknown type that
 * spans what lies between; what is behind the first sector is rewritten; the first sector is switched back.
 */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { encodeHeader, type Header, readHeader } from './header.js';
import type { Image } from './image.js';
import {
  Autoclear,
  ExtensionHeader,
  FULL_HEADER_LENGTH,
  HeaderV2,
  HeaderV3,
  MAX_BACKING_NAME,
  V2_HEADER_LENGTH,
} from './layout.js';

/** What a disk writes whole or not at all. */
const SECTOR = 512;
/** The type of the extension that spans unused bytes for a moment: any that nobody knows, `skip`. */
const SKIP = 0x736b6970;

/** Flush the image before: the header is read from the file. Throws as `FormatNode.changeBacking` says. */
export async function changeBacking(
  image: Image,
  filename: string | undefined,
  format: string | undefined,
): Promise<void> {
  const { file } = image;
  if (filename !== undefined) {
    const rawData = image.dataFile !== undefined && (image.header.autoclear & Autoclear.dataFileRaw) !== 0n;
    if (rawData || Buffer.byteLength(filename) > MAX_BACKING_NAME) {
      throw new ImageError('invalid', 'Invalid argument', { path: file.filename, errno: 'EINVAL' });
    }
  }
  image.checkAlive();
  const backing =
    filename === undefined ? undefined : format === undefined ? { filename } : { filename, format };
  await rewriteHeader(image, (header) => {
    header.backing = backing;
  });
}

/**
 * Rewrites the header as `change` makes it, so that at every instant it is the old or the new one. Flush the image before:
 * the header is read from the file. What the image knows of backing file, extensions and autoclear bits follows.
 */
export async function rewriteHeader(image: Image, change: (header: Header) => void): Promise<void> {
  const { file } = image;
  const header = await readHeader(file);
  change(header);
  await replaceHeader(file, header);
  const { backing, extensions, autoclear } = await readHeader(file);
  Object.assign(image.header, { backing, extensions, autoclear });
}

/**
 * Writes a whole new header: at every instant the file has the old or the new one, and it is durable when this resolves. Throws
 * `no-space` where its cluster does not hold it.
 */
export async function replaceHeader(file: Storage, header: Header): Promise<void> {
  const clusterSize = 2 ** header.clusterBits;
  const encoded = encodeHeader(header);
  const final = new Uint8Array(clusterSize);
  final.set(encoded);
  const old = new Uint8Array(clusterSize);
  await file.read(0, old);

  const put = async (from: number, to: number, bytes: Uint8Array) => {
    if (from < to) await file.write(from, bytes.subarray(from, to));
    await file.flush();
  };
  const same = Buffer.compare(old.subarray(SECTOR), final.subarray(SECTOR)) === 0;
  const used = Math.max(usedBytes(old), encoded.byteLength);
  const detour = same ? undefined : detourOf(old, final, encoded.byteLength, header.version);
  if (detour !== undefined) {
    await put(detour.at, clusterSize, detour.cluster);
    await put(0, SECTOR, detour.cluster);
    await put(SECTOR, Math.ceil(used / SECTOR) * SECTOR, final);
    await put(0, SECTOR, final);
    await put(detour.at, clusterSize, final);
  } else await put(0, same ? SECTOR : clusterSize, final);
}

/** The header cluster by the roundabout way, and where its upper part begins; undefined where there is no room for it. */
function detourOf(
  old: Uint8Array,
  final: Uint8Array,
  finalBytes: number,
  version: 2 | 3,
): { readonly cluster: Uint8Array; readonly at: number } | undefined {
  const fixed = version === 2 ? V2_HEADER_LENGTH : HeaderV3.decode(final, V2_HEADER_LENGTH).headerLength;
  // Everything behind the fields moves up: extensions, end marker, name.
  const tail = final.subarray(fixed, finalBytes);
  const at = Math.floor((final.byteLength - tail.byteLength) / SECTOR) * SECTOR;
  const skipFrom = fixed + ExtensionHeader.size;
  if (at < Math.max(usedBytes(old), finalBytes, SECTOR) || skipFrom > Math.min(SECTOR, at)) return undefined;
  const cluster = new Uint8Array(old);
  cluster.set(final.subarray(0, fixed));
  ExtensionHeader.encodeInto({ type: SKIP, length: at - skipFrom }, cluster, fixed);
  cluster.fill(0, at);
  cluster.set(tail, at);
  const { backingFileOffset } = HeaderV2.decode(final);
  if (backingFileOffset !== 0n) {
    new DataView(cluster.buffer).setBigUint64(
      HeaderV2.offsetOf('backingFileOffset'),
      backingFileOffset + BigInt(at - fixed),
    );
  }
  return { cluster, at };
}

/** Where the zeros begin that fill the rest of the header cluster. */
function usedBytes(cluster: Uint8Array): number {
  let end = cluster.byteLength;
  while (end > FULL_HEADER_LENGTH && cluster[end - 1] === 0) end--;
  return end;
}
