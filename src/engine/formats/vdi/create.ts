/** New images. */
import { randomBytes } from 'node:crypto';
import type { CreateContext } from '../../node/driver.js';
import type { OptionDeclaration } from '../../node/option-table.js';
import { sizeError } from './header.js';
import {
  BLOCK,
  Header,
  MAX_SIZE,
  SECTOR,
  SIGNATURE,
  TYPE_DYNAMIC,
  TYPE_STATIC,
  UNALLOCATED,
  VERSION,
} from './layout.js';

export const createOptions: readonly OptionDeclaration[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  { name: 'static', type: 'bool', help: 'VDI static (pre-allocated) image', default: false },
];

const TEXT = '<<< QEMU VM Virtual Disk Image >>>\n';
/** cbHeader counts from its own field to the end of the four UUIDs, and what VirtualBox 1.6 added. */
const HEADER_SIZE = 0x180;
/** The block map is written in pieces of so many entries. */
const PIECE = 262_144;

/** Guest sizes are whole sectors. */
export function roundSize(size: number): number {
  return Math.ceil(size / SECTOR) * SECTOR;
}

/** A random UUID (version 4) in VDI's byte order: the first three fields are little-endian. */
function uuid(): Uint8Array {
  const out = randomBytes(16);
  out[7] = (out[7]! & 0x0f) | 0x40;
  out[8] = (out[8]! & 0x3f) | 0x80;
  return out;
}

/** Throws `limit` for a disk that no block map can hold. */
export function checkCreate({ size }: Pick<CreateContext, 'size'>): void {
  if (roundSize(size) > MAX_SIZE) throw sizeError(BigInt(roundSize(size)));
}

/** Writes a new image, the header last. Throws `limit` for a disk that no block map can hold, before anything is written. */
export async function createVdi(context: CreateContext): Promise<void> {
  checkCreate(context);
  const { file, options } = context;
  const size = roundSize(context.size);
  const isStatic = options.static === true;
  const blocks = Math.ceil(size / BLOCK);
  const mapOffset = SECTOR;
  const dataOffset = mapOffset + Math.ceil((blocks * 4) / SECTOR) * SECTOR;
  for (let first = 0; first < blocks; first += PIECE) {
    const count = Math.min(PIECE, blocks - first);
    const last = first + count === blocks;
    const piece = Buffer.alloc(last ? Math.ceil((count * 4) / SECTOR) * SECTOR : count * 4);
    if (isStatic) for (let i = 0; i < count; i++) piece.writeUInt32LE(first + i, i * 4);
    else for (let i = 0; i < count; i++) piece.writeUInt32LE(UNALLOCATED, i * 4);
    await file.write(mapOffset + first * 4, piece);
  }
  if (isStatic && blocks > 0) await file.truncate(dataOffset + blocks * BLOCK);
  await file.flush();
  const header = Header.encode({
    text: Buffer.from(TEXT),
    signature: SIGNATURE,
    version: VERSION,
    headerSize: HEADER_SIZE,
    imageType: isStatic ? TYPE_STATIC : TYPE_DYNAMIC,
    mapOffset,
    dataOffset,
    sectorSize: SECTOR,
    diskSize: BigInt(size),
    blockSize: BLOCK,
    blocksInImage: blocks,
    blocksAllocated: isStatic ? blocks : 0,
    uuidImage: uuid(),
    uuidLastSnapshot: uuid(),
  });
  await file.write(0, header);
}
