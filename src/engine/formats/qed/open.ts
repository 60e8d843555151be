/** Opening: the header's claims are checked in the reference's order and words. */
import { ImageError } from '../../error.js';
import type { OpenContext } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { checkQed } from './check.js';
import { type Header, QedImage, wholeClusters } from './image.js';
import {
  Feature,
  geometry,
  isPowerOfTwoWithin,
  KNOWN_FEATURES,
  MAGIC,
  MAX_BACKING_NAME,
  MAX_CLUSTER_SIZE,
  MAX_TABLE_SIZE,
  MIN_CLUSTER_SIZE,
  MIN_TABLE_SIZE,
  maxImageSize,
  QedHeader,
  SECTOR,
} from './layout.js';

const UINT32_MAX = 2 ** 32 - 1;

function bad(message: string): ImageError {
  return new ImageError('corrupt', message);
}

function checkHeader(header: Header, fileSize: number): void {
  if (header.magic !== MAGIC) throw bad('Image not in QED format');
  const unknown = header.features & ~KNOWN_FEATURES;
  if (unknown !== 0n) {
    throw new ImageError('unsupported', `Unsupported QED features: ${unknown.toString(16)}`);
  }
  const { clusterSize, tableSize, headerSize, imageSize, l1TableOffset } = header;
  if (!isPowerOfTwoWithin(clusterSize, MIN_CLUSTER_SIZE, MAX_CLUSTER_SIZE)) {
    throw bad('QED cluster size is invalid');
  }
  if (!isPowerOfTwoWithin(tableSize, MIN_TABLE_SIZE, MAX_TABLE_SIZE)) throw bad('QED table size is invalid');
  if (!validImageSize(imageSize, clusterSize, tableSize)) throw bad('QED image size is invalid');
  const end = BigInt(wholeClusters(fileSize, clusterSize));
  const tableBytes = BigInt(clusterSize * tableSize);
  const validL1 =
    // The reference takes no tables of one cluster, whatever the specification says.
    tableSize > 1 &&
    l1TableOffset % BigInt(clusterSize) === 0n &&
    l1TableOffset >= BigInt(headerSize) * BigInt(clusterSize) &&
    l1TableOffset + tableBytes <= end;
  if (!validL1) throw bad('QED table offset is invalid');
  if (headerSize > Math.floor(UINT32_MAX / clusterSize)) throw bad('QED header size is too large');
  if (imageSize > BigInt(Number.MAX_SAFE_INTEGER)) throw new ImageError('limit', 'QED image size is invalid');
}

export function validImageSize(size: bigint, clusterSize: number, tableSize: number): boolean {
  return size % BigInt(SECTOR) === 0n && size <= maxImageSize(clusterSize, tableSize);
}

async function readBackingName(file: Storage, header: Header): Promise<string | undefined> {
  if ((header.features & Feature.backingFile) === 0n) return undefined;
  const { backingFilenameOffset: at, backingFilenameSize: length } = header;
  if (at + length > header.clusterSize * header.headerSize) {
    throw bad('QED backing filename offset is invalid');
  }
  if (length > MAX_BACKING_NAME) throw bad('Failed to read backing filename');
  const name = Buffer.alloc(length);
  await file.read(at, name);
  const end = name.indexOf(0);
  return name.toString('utf8', 0, end < 0 ? length : end) || undefined;
}

/** Opens an image; one that was not closed cleanly is checked and repaired first where it is opened for writing. */
export async function openImage(context: OpenContext): Promise<QedImage> {
  const { file, writable, forCheck } = context;
  const head = new Uint8Array(QedHeader.size);
  await file.read(0, head);
  const header = QedHeader.decode(head);
  checkHeader(header, file.size);
  const { clusterSize, tableSize } = header;
  const image = new QedImage({ file, header, geometry: geometry(clusterSize, tableSize), writable });
  image.backingName = await readBackingName(file, header);
  if (writable && header.autoclearFeatures !== 0n) {
    header.autoclearFeatures = 0n;
    await image.writeHeader();
    await file.flush();
  }
  if (writable && !forCheck && image.needsCheck) {
    await checkQed(image, { repair: { leaks: true, errors: true }, report: () => {} });
  }
  return image;
}
