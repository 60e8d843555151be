/**
 * VirtualBox disk images, version 1.1: VirtualBox's own VDICore.h (`VDIPREHEADER`, `VDIHEADER1PLUS`), whose field names
 * stand in the comments. All numbers are little-endian.
 */
import { bytes, struct, u32, u64 } from '../../codec/struct.js';

export const SIGNATURE = 0xbeda107f;
/** Offset of the signature: what a probe needs. */
export const SIGNATURE_AT = 0x40;
export const VERSION = 0x0001_0001;

/** VDIPREHEADER and VDIHEADER1PLUS, padded to a sector. */
export const Header = struct('little', {
  /** szFileInfo: text for people. */
  text: bytes(64),
  /** u32Signature. */
  signature: u32,
  /** u32Version: major in the upper half. */
  version: u32,
  /** cbHeader: bytes from this field to the last one. */
  headerSize: u32,
  /** u32Type: 1 dynamic, 2 static. */
  imageType: u32,
  /** fFlags. */
  imageFlags: u32,
  /** szComment. */
  description: bytes(256),
  /** offBlocks: byte offset of the block map. */
  mapOffset: u32,
  /** offData: byte offset of block 0. */
  dataOffset: u32,
  /** LegacyGeometry. */
  cylinders: u32,
  heads: u32,
  sectors: u32,
  sectorSize: u32,
  /** u32Dummy. */
  unused: u32,
  /** cbDisk. */
  diskSize: u64,
  /** cbBlock. */
  blockSize: u32,
  /** cbBlockExtra. */
  blockExtra: u32,
  /** cBlocks: entries of the block map. */
  blocksInImage: u32,
  /** cBlocksAllocated: blocks that the file has. */
  blocksAllocated: u32,
  /** uuidCreate, uuidModify, uuidLinkage, uuidParentModify. */
  uuidImage: bytes(16),
  uuidLastSnapshot: bytes(16),
  uuidLink: bytes(16),
  uuidParent: bytes(16),
  padding: bytes(56),
});
export type Header = ReturnType<typeof Header.decode>;

export const TYPE_DYNAMIC = 1;
export const TYPE_STATIC = 2;

export const SECTOR = 512;
/** The one block size that the reference takes, and that VirtualBox makes. */
export const BLOCK = 1024 * 1024;
/** Entries of a block map: as many as fit into 2 GiB less a sector. */
export const MAX_BLOCKS = 0x1fff_ff80;
export const MAX_SIZE = MAX_BLOCKS * BLOCK;

/** Entries of the block map from here on are no blocks: 0xfffffffe reads as zeros, 0xffffffff is not allocated. */
export const DISCARDED = 0xffff_fffe;
export const UNALLOCATED = 0xffff_ffff;
