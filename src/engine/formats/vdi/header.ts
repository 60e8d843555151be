/** The header, read and checked as the reference does it, with its words. */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { BLOCK, Header, MAX_BLOCKS, MAX_SIZE, SECTOR, SIGNATURE, TYPE_STATIC, VERSION } from './layout.js';

export interface VdiImage {
  readonly file: Storage;
  /** Guest bytes. */
  readonly size: number;
  readonly isStatic: boolean;
  readonly mapOffset: number;
  readonly dataOffset: number;
  readonly blocks: number;
  /** As the header has it. */
  readonly blocksAllocated: number;
}

function unsupported(what: string): ImageError {
  return new ImageError('unsupported', `unsupported VDI image (${what})`);
}

/** A size as the reference's messages have it. */
export function sizeError(size: bigint): ImageError {
  return new ImageError(
    'limit',
    `Unsupported VDI image size (size is 0x${size.toString(16)}, max supported is 0x${MAX_SIZE.toString(16)})`,
  );
}

/** Throws `corrupt` for what is no VDI header, `unsupported` or `limit` for one that the reference does not take either. */
export async function readHeader(file: Storage): Promise<VdiImage> {
  const raw = new Uint8Array(Header.size);
  await file.read(0, raw);
  const header = Header.decode(raw);
  if (header.diskSize > BigInt(MAX_SIZE)) throw sizeError(header.diskSize);
  const size = Math.ceil(Number(header.diskSize) / SECTOR) * SECTOR;
  if (header.signature !== SIGNATURE) {
    const found = header.signature.toString(16).padStart(8, '0');
    throw new ImageError('corrupt', `Image not in VDI format (bad signature ${found})`);
  }
  if (header.version !== VERSION) {
    throw unsupported(`version ${header.version >>> 16}.${header.version & 0xffff}`);
  }
  if (header.mapOffset % SECTOR !== 0) {
    throw unsupported(`unaligned block map offset 0x${header.mapOffset.toString(16)}`);
  }
  if (header.dataOffset % SECTOR !== 0) {
    throw unsupported(`unaligned data offset 0x${header.dataOffset.toString(16)}`);
  }
  if (header.sectorSize !== SECTOR) throw unsupported(`sector size ${header.sectorSize} is not ${SECTOR}`);
  if (header.blockSize !== BLOCK) throw unsupported(`block size ${header.blockSize} is not ${BLOCK}`);
  const blocks = header.blocksInImage;
  if (size > blocks * BLOCK) {
    throw unsupported(`disk size ${size}, image bitmap has room for ${blocks * BLOCK}`);
  }
  if (header.uuidLink.some((byte) => byte !== 0)) throw unsupported('non-NULL link UUID');
  if (header.uuidParent.some((byte) => byte !== 0)) throw unsupported('non-NULL parent UUID');
  if (blocks > MAX_BLOCKS) throw unsupported(`too many blocks ${blocks}, max is ${MAX_BLOCKS}`);
  return {
    file,
    size,
    isStatic: header.imageType === TYPE_STATIC,
    mapOffset: header.mapOffset,
    dataOffset: header.dataOffset,
    blocks,
    blocksAllocated: header.blocksAllocated,
  };
}
