/** New images. */
import { ImageError } from '../../error.js';
import type { CreateContext } from '../../node/driver.js';
import type { OptionDeclaration, OptionValues } from '../../node/option-table.js';
import type { Storage } from '../../storage/storage.js';
import { checksumOf, encodeHeader, newGuid } from './header.js';
import {
  BAT_ENTRY_SIZE,
  BAT_REGION,
  BlockState,
  batEntries,
  chunkRatio,
  FILE_SIGNATURE,
  FileFlags,
  FileIdentifier,
  FileParameters,
  HEADER_AT,
  HEADER_SECTION_SIZE,
  HEADER_SIGNATURE,
  HEADER_VERSION,
  Item,
  LOG_VERSION,
  MAX_BLOCK_SIZE,
  MAX_DISK_SIZE,
  METADATA_REGION,
  METADATA_SIGNATURE,
  METADATA_TABLE_SIZE,
  MetadataFlags,
  MetadataTableEntry,
  MetadataTableHeader,
  MIB,
  MIN_BLOCK_SIZE,
  REGION_REQUIRED,
  REGION_SIGNATURE,
  REGION_TABLE_AT,
  REGION_TABLE_SIZE,
  RegionTableEntry,
  RegionTableHeader,
  SECTOR,
} from './layout.js';

const DEFAULT_LOG_SIZE = MIB;
/** Written where the specification wants to know who has made the file. */
const CREATOR = 'imgd';
const METADATA_LENGTH = MIB;
/** From the metadata region to the first block: the region itself, and as much room as the reference leaves. */
const METADATA_TO_DATA = 5 * MIB;
const BAT_PIECE = MIB;
const GIB = 1024 * MIB;

export const createOptions: readonly OptionDeclaration[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size; max of 64TB.' },
  { name: 'log_size', type: 'size', help: 'Log size; min 1MB.', default: DEFAULT_LOG_SIZE },
  {
    name: 'block_size',
    type: 'size',
    help: 'Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.',
    default: 0,
  },
  {
    name: 'subformat',
    type: 'string',
    help: "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.",
  },
  {
    name: 'block_state_zero',
    type: 'bool',
    help: "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set to 'off' when using 'qemu-img convert' with subformat=dynamic.",
  },
];

/** Guest sizes are whole sectors. */
export function roundSize(size: number): number {
  return Math.ceil(size / SECTOR) * SECTOR;
}

interface Plan {
  readonly size: number;
  readonly blockSize: number;
  readonly fixed: boolean;
  readonly zeroBlocks: boolean;
  readonly logSize: number;
  readonly batAt: number;
  readonly batLength: number;
  readonly metadataAt: number;
  readonly dataAt: number;
}

function wrong(message: string): ImageError {
  return new ImageError('invalid', message, { errno: 'EINVAL' });
}

/** The larger the disk, the larger its blocks. */
function automaticBlockSize(size: number): number {
  if (size > 32 * 1024 * GIB) return 64 * MIB;
  if (size > 100 * GIB) return 32 * MIB;
  if (size > GIB) return 16 * MIB;
  return 8 * MIB;
}

function plan(size: number, options: OptionValues): Plan {
  const subformat = options.subformat as string | undefined;
  if (subformat !== undefined && subformat !== 'dynamic' && subformat !== 'fixed') {
    throw wrong(`Parameter 'subformat' does not accept value '${subformat}'`);
  }
  if (size > MAX_DISK_SIZE) throw wrong('Image size too large; max of 64TB');
  const logSize = roundUp((options.log_size as number | undefined) ?? DEFAULT_LOG_SIZE);
  if (logSize >= 4 * GIB) throw wrong('Log size must be smaller than 4 GB');
  if (logSize < MIB) throw wrong('Log size must be a multiple of 1 MB');
  const wanted = roundUp((options.block_size as number | undefined) ?? 0);
  const blockSize =
    wanted === 0 ? automaticBlockSize(size) : Math.max(MIN_BLOCK_SIZE, Math.min(MAX_BLOCK_SIZE, wanted));
  if ((blockSize & (blockSize - 1)) !== 0) throw wrong('Block size must be a power of two');
  const batAt = HEADER_SECTION_SIZE + logSize;
  const batLength = Math.max(MIB, roundUp(batEntries(size, blockSize) * BAT_ENTRY_SIZE));
  const metadataAt = batAt + batLength;
  return {
    size,
    blockSize,
    fixed: subformat === 'fixed',
    zeroBlocks: options.block_state_zero !== false,
    logSize,
    batAt,
    batLength,
    metadataAt,
    dataAt: metadataAt + METADATA_TO_DATA,
  };
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / MIB) * MIB;
}

/** Entries of all payload blocks; those of sector bitmaps stay zero. Of a fixed disk, every block is there. */
async function writeBat(file: Storage, p: Plan): Promise<void> {
  if (!p.fixed && !p.zeroBlocks) return;
  const blocks = Math.ceil(p.size / p.blockSize);
  const ratio = chunkRatio(p.blockSize);
  const entries = blocks === 0 ? 0 : batEntries(p.size, p.blockSize);
  const perPiece = BAT_PIECE / BAT_ENTRY_SIZE;
  for (let from = 0; from < entries; from += perPiece) {
    const count = Math.min(perPiece, entries - from);
    const bytes = new Uint8Array(count * BAT_ENTRY_SIZE);
    const view = new DataView(bytes.buffer);
    for (let index = 0; index < count; index++) {
      const entry = from + index;
      if (entry % (ratio + 1) === ratio) continue;
      if (!p.fixed) {
        bytes[index * BAT_ENTRY_SIZE] = BlockState.zero;
        continue;
      }
      const at = p.dataAt + (entry - Math.floor(entry / (ratio + 1))) * p.blockSize;
      view.setUint32(index * BAT_ENTRY_SIZE, (at % 2 ** 32) + BlockState.fullyPresent, true);
      view.setUint32(index * BAT_ENTRY_SIZE + 4, Math.floor(at / 2 ** 32), true);
    }
    await file.write(p.batAt + from * BAT_ENTRY_SIZE, bytes);
  }
}

function regionTable(p: Plan): Uint8Array {
  const table = new Uint8Array(REGION_TABLE_SIZE);
  RegionTableHeader.encodeInto({ signature: REGION_SIGNATURE, entryCount: 2 }, table);
  const entries = [
    { guid: BAT_REGION, fileOffset: BigInt(p.batAt), length: p.batLength, required: REGION_REQUIRED },
    {
      guid: METADATA_REGION,
      fileOffset: BigInt(p.metadataAt),
      length: METADATA_LENGTH,
      required: REGION_REQUIRED,
    },
  ];
  for (const [index, entry] of entries.entries()) {
    RegionTableEntry.encodeInto(entry, table, RegionTableHeader.size + index * RegionTableEntry.size);
  }
  const at = RegionTableHeader.offsetOf('checksum');
  new DataView(table.buffer).setUint32(at, checksumOf(table, at), true);
  return table;
}

function metadata(p: Plan): Uint8Array {
  const bytes = new Uint8Array(2 * METADATA_TABLE_SIZE);
  const { isRequired, isVirtualDisk } = MetadataFlags;
  const number = (value: number | bigint, length: number): Uint8Array => {
    const out = new Uint8Array(length);
    const view = new DataView(out.buffer);
    if (typeof value === 'bigint') view.setBigUint64(0, value, true);
    else view.setUint32(0, value, true);
    return out;
  };
  const parameters = FileParameters.encode({
    blockSize: p.blockSize,
    flags: p.fixed ? FileFlags.leaveBlockAllocated : 0,
  });
  const items = [
    { itemId: Item.fileParameters, flags: isRequired, data: parameters },
    { itemId: Item.virtualDiskSize, flags: isVirtualDisk | isRequired, data: number(BigInt(p.size), 8) },
    { itemId: Item.virtualDiskId, flags: isVirtualDisk | isRequired, data: newGuid() },
    { itemId: Item.logicalSectorSize, flags: isVirtualDisk | isRequired, data: number(SECTOR, 4) },
    { itemId: Item.physicalSectorSize, flags: isVirtualDisk | isRequired, data: number(SECTOR, 4) },
  ];
  MetadataTableHeader.encodeInto({ signature: METADATA_SIGNATURE, entryCount: items.length }, bytes);
  let offset = METADATA_TABLE_SIZE;
  for (const [index, { itemId, flags, data }] of items.entries()) {
    const entry = { itemId, offset, length: data.length, flags };
    MetadataTableEntry.encodeInto(entry, bytes, MetadataTableHeader.size + index * MetadataTableEntry.size);
    bytes.set(data, offset);
    offset += data.length;
  }
  return bytes;
}

function headers(p: Plan): Uint8Array[] {
  const fields = {
    signature: HEADER_SIGNATURE,
    fileWriteGuid: newGuid(),
    dataWriteGuid: newGuid(),
    logVersion: LOG_VERSION,
    version: HEADER_VERSION,
    logLength: p.logSize,
    logOffset: BigInt(HEADER_SECTION_SIZE),
  };
  return HEADER_AT.map((_, slot) => encodeHeader({ ...fields, sequenceNumber: BigInt(slot + 1) }));
}

/** Throws `invalid` for options that make no sense. */
export function checkCreate({ size, options }: Pick<CreateContext, 'size' | 'options'>): void {
  plan(roundSize(size), options);
}

/** Writes a new image, its identifier last: before that it is none. */
export async function createVhdx({ file, size, options }: CreateContext): Promise<void> {
  const p = plan(roundSize(size), options);
  await file.zero({ at: 0, length: p.dataAt }, { unmap: true });
  await file.truncate(p.fixed ? p.dataAt + p.size : p.dataAt);
  await writeBat(file, p);
  await file.write(p.metadataAt, metadata(p));
  const table = regionTable(p);
  for (const at of REGION_TABLE_AT) await file.write(at, table);
  const made = headers(p);
  for (const [slot, at] of HEADER_AT.entries()) await file.write(at, made[slot]!);
  await file.flush();
  const creator = Buffer.from(CREATOR, 'utf16le');
  await file.write(0, FileIdentifier.encode({ signature: FILE_SIGNATURE, creator }));
  await file.flush();
}
