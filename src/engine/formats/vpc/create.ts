/** Creating fixed and dynamic disks. */
import { randomBytes } from 'node:crypto';
import { ImageError } from '../../error.js';
import type { CreateContext } from '../../node/driver.js';
import type { OptionDeclaration, OptionValues } from '../../node/option-table.js';
import type { Storage } from '../../storage/storage.js';
import { layOut } from './geometry.js';
import {
  ALL_ONES,
  DEFAULT_BLOCK_SIZE,
  DiskType,
  DynamicHeader,
  ENTRY_BYTES,
  FOOTER_COOKIE,
  Footer,
  HEADER_COOKIE,
  SECTOR,
  sealFooter,
  sealHeader,
  VERSION,
} from './layout.js';

export const createOptions: readonly OptionDeclaration[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  {
    name: 'subformat',
    type: 'string',
    help: 'Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ',
  },
  {
    name: 'force_size',
    type: 'bool',
    help: 'Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based calculation',
  },
];

/** January 1, 2000 12:00:00 AM in UTC, in seconds since 1970. */
const EPOCH = 946684800;
/** As the reference has them: what other programs know of a creator they go by. */
const CREATOR = 'qemu';
/** Tells readers that the current size counts, not the geometry. */
const CREATOR_BY_SIZE = 'qem2';
const CREATOR_VERSION = { major: 5, minor: 3 } as const;
const FEATURE_RESERVED = 2;

/** Entries of the table are written in pieces of this many bytes. */
const PIECE = 1024 * 1024;

function isFixed({ subformat }: OptionValues): boolean {
  if (subformat === undefined || subformat === 'dynamic') return false;
  if (subformat === 'fixed') return true;
  throw new ImageError('invalid', `Parameter 'subformat' does not accept value '${String(subformat)}'`);
}

/**
 * Creates an image. Sizes are rounded up to the next geometry, but with `force_size` or beyond what geometries can say.
 *
 * @throws ImageError `limit` beyond 2040 GiB; `invalid` for an unknown subformat.
 */
export async function create({ file, size, options }: CreateContext): Promise<void> {
  const fixed = isFixed(options);
  const bySize = options.force_size === true;
  const layout = layOut(size, bySize);
  if (layout === undefined) {
    throw new ImageError('limit', "The image size is too large for file format 'vpc'", { errno: 'EFBIG' });
  }
  const { sectors, geometry } = layout;
  const bytes = sectors * SECTOR;
  const footer = sealFooter({
    cookie: Buffer.from(FOOTER_COOKIE),
    features: FEATURE_RESERVED,
    fileFormatVersion: VERSION,
    dataOffset: fixed ? ALL_ONES : BigInt(Footer.size),
    timeStamp: Math.max(0, Math.floor(Date.now() / 1000) - EPOCH) >>> 0,
    creatorApplication: Buffer.from(bySize ? CREATOR_BY_SIZE : CREATOR),
    creatorVersionMajor: CREATOR_VERSION.major,
    creatorVersionMinor: CREATOR_VERSION.minor,
    creatorHostOs: Buffer.from('Wi2k'),
    originalSize: BigInt(bytes),
    currentSize: BigInt(bytes),
    ...geometry,
    diskType: fixed ? DiskType.fixed : DiskType.dynamic,
    uniqueId: randomUuid(),
  });
  if (fixed) {
    await file.truncate(bytes + Footer.size);
    await file.write(bytes, footer);
  } else {
    await createDynamic(file, sectors, footer);
  }
  await file.flush();
}

/** A version 4 UUID, its first fields as they stand (RFC 4122). */
function randomUuid(): Uint8Array {
  const id = randomBytes(16);
  id[6] = (id[6]! & 0x0f) | 0x40;
  id[8] = (id[8]! & 0x3f) | 0x80;
  return id;
}

/** The copy of the footer, header, empty table, footer. Without the copy at its start the file is no image: it comes last. */
async function createDynamic(file: Storage, sectors: number, footer: Uint8Array): Promise<void> {
  const entries = Math.ceil(sectors / (DEFAULT_BLOCK_SIZE / SECTOR));
  const tableAt = Footer.size + DynamicHeader.size;
  const tableBytes = Math.ceil((entries * ENTRY_BYTES) / SECTOR) * SECTOR;
  const header = sealHeader({
    cookie: Buffer.from(HEADER_COOKIE),
    dataOffset: ALL_ONES,
    tableOffset: BigInt(tableAt),
    headerVersion: VERSION,
    maxTableEntries: entries,
    blockSize: DEFAULT_BLOCK_SIZE,
  });
  await file.write(Footer.size, header);
  const unused = Buffer.alloc(Math.min(PIECE, tableBytes), 0xff);
  for (let done = 0; done < tableBytes; done += unused.length) {
    await file.write(tableAt + done, unused.subarray(0, tableBytes - done));
  }
  await file.write(tableAt + tableBytes, footer);
  await file.flush();
  await file.write(0, footer);
}
