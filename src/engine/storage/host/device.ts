/** What only ioctl(2) and statx(2) tell: sizes of block devices, alignment of direct requests, the No-COW flag. */
import { libc } from './libc.js';

const BLKGETSIZE64 = 0x80081272;
const BLKSSZGET = 0x1268;
const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_NOCOW_FL = 0x00800000;

/** Length in bytes of a block device; undefined where the host does not say. */
export function blockDeviceSize(fd: number): number | undefined {
  const bytes = new Uint8Array(8);
  const c = libc();
  if (c === undefined || c.ioctl(fd, BLKGETSIZE64, bytes) < 0) return undefined;
  const size = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  return Number.isSafeInteger(size) ? size : undefined;
}

/** Logical sector size in bytes of a block device. */
export function blockDeviceSectorSize(fd: number): number | undefined {
  const bytes = new Uint8Array(4);
  const c = libc();
  if (c === undefined || c.ioctl(fd, BLKSSZGET, bytes) < 0) return undefined;
  return new DataView(bytes.buffer).getInt32(0, true);
}

const AT_EMPTY_PATH = 0x1000;
const STATX_DIOALIGN = 0x2000;

/** What O_DIRECT asks of memory addresses and of offsets and lengths, in bytes (Linux 6.1 on); undefined where not told. */
export function directAlignment(fd: number): { memory: number; offset: number } | undefined {
  const c = libc();
  // struct statx: stx_mask u32 at 0, stx_dio_mem_align u32 at 0x98, stx_dio_offset_align u32 at 0x9c; 256 bytes in all.
  const bytes = new Uint8Array(256);
  if (c?.statx === undefined || c.statx(fd, '', AT_EMPTY_PATH, STATX_DIOALIGN, bytes) < 0) return undefined;
  const view = new DataView(bytes.buffer);
  if ((view.getUint32(0, true) & STATX_DIOALIGN) === 0) return undefined;
  const [memory, offset] = [view.getUint32(0x98, true), view.getUint32(0x9c, true)];
  return memory > 0 && offset > 0 ? { memory, offset } : undefined;
}

/** Turns copy-on-write off for a new, empty file where the filesystem has such a flag (btrfs). Best effort, as in QEMU. */
export function disableCopyOnWrite(fd: number): void {
  const c = libc();
  const flags = new Uint8Array(8);
  if (c === undefined || c.ioctl(fd, FS_IOC_GETFLAGS, flags) < 0) return;
  const view = new DataView(flags.buffer);
  view.setUint32(0, view.getUint32(0, true) | FS_NOCOW_FL, true);
  c.ioctl(fd, FS_IOC_SETFLAGS, flags);
}
