/** Opens, creates and locks a file or block device of the host. */
import { constants, readFileSync, type Stats } from 'node:fs';
import { hostError, ImageError } from '../error.js';
import { DirectIo } from './direct.js';
import { closeDescriptor, openDescriptor, setLength, statDescriptor, statPath } from './file-io.js';
import { type FileDriver, FileStorage } from './file-storage.js';
import {
  blockDeviceSectorSize,
  blockDeviceSize,
  directAlignment,
  disableCopyOnWrite,
} from './host/device.js';
import { codeOf } from './host/errno.js';
import { libc } from './host/libc.js';
import { FileLocks } from './locks.js';
import type { FileObserver } from './observer.js';
import type { Permissions } from './permissions.js';

export type { FileDriver, FileFacet, FileIdentity, FileStorage } from './file-storage.js';

export type CacheMode = 'none' | 'writeback' | 'unsafe' | 'writethrough' | 'directsync';

export interface FileOptions {
  readonly path: string;
  /** The name for messages, as the user wrote it; the path where not given. */
  readonly filename?: string;
  readonly writable: boolean;
  /**
   * `no`: must exist. `truncate`: created, or emptied once locked. `exclusive`: must not exist. `try`: must exist and stays as it
   * is, with the errors of `truncate`.
   */
  readonly create?: 'no' | 'truncate' | 'exclusive' | 'try';
  /** A symbolic link is refused. */
  readonly noFollow?: boolean;
  /** Permission bits of a file that is created. */
  readonly mode?: number;
  /** Turns copy-on-write off for a new file, where the filesystem has it. */
  readonly noCopyOnWrite?: boolean;
  /** QEMU's cache modes; `writeback` where not given. */
  readonly cache?: CacheMode;
  /** `ignore`: host space is never given back. */
  readonly discard?: 'ignore' | 'unmap';
  /** What the use needs and allows others; without it no lock is taken, and none respected. */
  readonly locks?: Permissions | undefined;
  /** Whose the locks are, within this process (owners.ts). */
  readonly owner?: number | undefined;
  /** Throws where the opened file must not be used; asked before it is locked or emptied. */
  readonly confined?: ((fd: number) => void) | undefined;
  /** Told of the file, or of why it was not opened. */
  readonly observer?: FileObserver | undefined;
  /** Insists on a kind of file, as a `driver=` option does; without it the file decides. */
  readonly driver?: FileDriver;
}

/** What O_DIRECT asks for on hosts that do not tell: the largest sector that disks have. */
const SAFE_ALIGNMENT = 4096;

/**
 * Opens a file, takes its locks, and only then empties it where that was asked for. Errors are in QEMU's words: `Could not
 * open 'x': No such file or directory`, `Failed to get "write" lock`.
 */
export function openFile(options: FileOptions): Promise<FileStorage> {
  const { path, filename = path, locks } = options;
  return openWith(options, (fd) => locks && FileLocks.acquire(fd, filename, locks));
}

/**
 * Opens a file again for other access (writing, where it was opened for reading) and closes the old one. Its locks move
 * along, so that at no moment someone else gets in between. Where that fails the old one is as it was.
 */
export async function reopenFile(
  file: FileStorage,
  options: FileOptions & { readonly locks: Permissions; readonly create?: 'no' },
): Promise<FileStorage> {
  const before = file.locks?.permissions;
  file.locks?.setPermissions(options.locks);
  let opened: FileStorage;
  try {
    opened = await openWith(options, (fd) => file.locks && FileLocks.takeOver(fd, file.locks));
    const { device, inode } = opened.identity;
    if (device !== file.identity.device || inode !== file.identity.inode) {
      await opened.close();
      throw hostError(`Could not reopen '${file.filename}'`, { code: 'ESTALE' }, { path: file.filename });
    }
  } catch (error) {
    if (before) file.locks?.setPermissions(before);
    throw error;
  }
  await file.close();
  return opened;
}

async function openWith(
  options: FileOptions,
  lock: (fd: number) => FileLocks | undefined,
): Promise<FileStorage> {
  const { path, filename = path, writable, create = 'no', cache = 'writeback' } = options;
  const verb = create === 'no' ? 'open' : 'create';
  const context = { path: filename, operation: verb };
  const fail = (error: unknown) =>
    hostError(`Could not ${verb} '${filename}'`, { code: codeOf(error) }, context);

  // Without host calls nothing tells where memory lies, and direct requests would fail: the page cache then.
  const direct = (cache === 'none' || cache === 'directsync') && libc() !== undefined;
  let flags = writable ? constants.O_RDWR : constants.O_RDONLY;
  if (create === 'truncate' || create === 'exclusive') flags |= constants.O_CREAT;
  if (create === 'exclusive') flags |= constants.O_EXCL;
  if (options.noFollow === true) flags |= constants.O_NOFOLLOW ?? 0;
  if (direct) flags |= constants.O_DIRECT ?? 0;
  if (cache === 'writethrough' || cache === 'directsync') flags |= constants.O_DSYNC;

  let fd: number;
  try {
    fd = await openPromptly(path, flags, options.mode ?? 0o644);
  } catch (error) {
    if (direct && codeOf(error) === 'EINVAL') {
      const text = `Could not ${verb} '${filename}': filesystem does not support O_DIRECT`;
      throw new ImageError('unsupported', text, { ...context, errno: 'EINVAL' }, error);
    }
    throw fail(error);
  }
  try {
    let stats = await statDescriptor(fd).catch((error: unknown) => {
      throw hostError('Could not stat file', { code: codeOf(error) }, context);
    });
    options.confined?.(fd);
    checkKind(stats, filename, options.driver);
    const locks = lock(fd);
    if (options.owner !== undefined) locks?.ownedBy(options.owner);
    if (create === 'truncate' && stats.isFile()) {
      await setLength(fd, 0).catch((error: unknown) => {
        throw hostError('Could not resize file', { code: codeOf(error) }, context);
      });
      stats = await statDescriptor(fd);
    }
    if (create !== 'no' && create !== 'try' && options.noCopyOnWrite) disableCopyOnWrite(fd);
    const size = lengthOf(fd, stats, filename);
    const storage = new FileStorage({
      fd,
      filename,
      driver: stats.isFile() ? 'file' : 'host_device',
      writable,
      stats,
      size,
      discards: options.discard !== 'ignore',
      flushes: cache !== 'unsafe',
      buffered: cache === 'writeback' || cache === 'unsafe',
      direct: direct ? new DirectIo(fd, alignmentOf(fd, stats)) : undefined,
      locks,
    });
    options.observer?.file(storage);
    return storage;
  } catch (error) {
    await closeDescriptor(fd).catch(() => undefined);
    options.observer?.refused(filename, error);
    throw error instanceof ImageError ? error : fail(error);
  }
}

/**
 * Opens without waiting for the other end of a pipe, which would hold up a thread. For devices that flag has another
 * meaning, and where another host holds a lease on the file it has to be waited for.
 */
async function openPromptly(path: string, flags: number, mode: number): Promise<number> {
  const found = await statPath(path);
  if (found && (found.isBlockDevice() || found.isCharacterDevice())) return openDescriptor(path, flags, mode);
  try {
    return await openDescriptor(path, flags | constants.O_NONBLOCK, mode);
  } catch (error) {
    if (codeOf(error) !== 'EAGAIN' || !found?.isFile()) throw error;
    return openDescriptor(path, flags, mode);
  }
}

/** Pipes, sockets and folders are no images; QEMU's two drivers divide the rest. */
function checkKind(stats: Stats, filename: string, driver: FileDriver | undefined): void {
  const device = stats.isBlockDevice() || stats.isCharacterDevice();
  if (device ? driver !== 'file' : stats.isFile() && driver !== 'host_device') return;
  const text =
    driver === 'host_device'
      ? `'host_device' driver requires '${filename}' to be either a character or block device`
      : `'file' driver requires '${filename}' to be a regular file`;
  throw new ImageError('invalid', text, { path: filename });
}

function lengthOf(fd: number, stats: Stats, filename: string): number {
  const size = stats.isBlockDevice() ? (blockDeviceSize(fd) ?? sizeFromSysfs(stats)) : stats.size;
  if (Number.isSafeInteger(size)) return size;
  throw new ImageError('limit', `Could not get the size of '${filename}': File too large`, {
    path: filename,
  });
}

/** The kernel's own table of devices, in 512-byte sectors. */
function sizeFromSysfs({ rdev }: Stats): number {
  // makedev(3): 12 bits of the major number from bit 8 on; 8 bits of the minor from bit 0 on, the rest from bit 20.
  const major = Math.floor(rdev / 256) % 4096;
  const minor = (rdev % 256) + Math.floor(rdev / 2 ** 20) * 256;
  return Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'latin1')) * 512;
}

function alignmentOf(fd: number, stats: Stats): { memory: number; offset: number } {
  const told = directAlignment(fd);
  if (told) return told;
  const sector = stats.isBlockDevice() ? blockDeviceSectorSize(fd) : undefined;
  return { memory: SAFE_ALIGNMENT, offset: sector ?? SAFE_ALIGNMENT };
}
