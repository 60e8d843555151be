/** Opening the files that images are made of: options to storages, through the gate, under QEMU's locks. */
import { statSync } from 'node:fs';
import type { CacheMode } from '../../protocol/commands/common.js';
import { ImageError } from '../error.js';
import type { OperationContext } from '../operations/context.js';
import { type FileStorage, openFile } from '../storage/file.js';
import { permissionsFor } from '../storage/locks.js';
import { NullStorage } from '../storage/null.js';
import { ALL_PERMISSIONS, type FileUse, NO_PERMISSIONS } from '../storage/permissions.js';
import type { Storage } from '../storage/storage.js';
import { FlatOptions, fromJson, protocolOf } from './flat-options.js';
import { absolutePath, checkAllowed, type OpenReason } from './gate.js';
import type { OptionDeclaration } from './option-table.js';

/** Extents and data files of one chain. */
const MAX_FILES = 1024;

export interface OpenOptions {
  readonly writable?: boolean;
  readonly cache?: CacheMode;
  /** Do not open the backing file. */
  readonly noBacking?: boolean;
  /** Opened for `check`: damage is to be found, not refused. */
  readonly forCheck?: boolean;
  /** Guest data is not touched: files that hold nothing else are not needed. */
  readonly metadataOnly?: boolean;
  readonly forceShare?: boolean;
  /** The image's size will change. */
  readonly resize?: boolean;
  /** Its content must not change meanwhile, whatever its format: the source of a conversion. */
  readonly stable?: boolean;
}

type FileRole = FileUse['role'];

/** What one call of openImage has opened, for loops, limits and clean-up. */
export interface Session {
  readonly context: OperationContext;
  readonly options: OpenOptions;
  readonly cache: CacheMode;
  readonly forceShare: boolean;
  readonly discard: 'ignore' | 'unmap' | undefined;
  /** Device and inode of each layer from the top down to the one being opened. */
  readonly layers: string[];
  /** Shared by all that inherit from this session. */
  readonly count: { files: number };
}

const NULL_OPTIONS: readonly OptionDeclaration[] = [
  { name: 'size', type: 'size', help: 'size of the null block' },
  {
    name: 'latency-ns',
    type: 'number',
    help: 'nanoseconds (approximated) to wait before completing request',
  },
  { name: 'read-zeroes', type: 'bool', help: 'return zeroes when read' },
];

export const PROTOCOLS = new Set(['file', 'host_device', 'null-co', 'null-aio']);

/** Options that any node may have and that nothing here acts on. */
const IGNORED = ['node-name', 'auto-read-only', 'detect-zeroes'];

interface GenericOptions {
  readonly readOnly: boolean | undefined;
  readonly forceShare: boolean | undefined;
  readonly cache: CacheMode | undefined;
  readonly discard: 'ignore' | 'unmap' | undefined;
}

export function takeGeneric(flat: FlatOptions): GenericOptions {
  for (const key of IGNORED) flat.take(key);
  const direct = flat.takeBool('cache.direct');
  const noFlush = flat.takeBool('cache.no-flush');
  flat.take('cache.writeback');
  const discard = flat.takeString('discard');
  if (discard !== undefined && !['ignore', 'off', 'unmap', 'on'].includes(discard)) {
    throw new ImageError('invalid', 'Invalid discard option');
  }
  return {
    readOnly: flat.takeBool('read-only'),
    forceShare: flat.takeBool('force-share'),
    cache: noFlush === true ? 'unsafe' : direct === true ? 'none' : undefined,
    discard: discard === undefined ? undefined : discard === 'unmap' || discard === 'on' ? 'unmap' : 'ignore',
  };
}

/** The session for what is below a node that set options of its own. */
export function inherit(session: Session, generic: GenericOptions): Session {
  if (generic.forceShare !== true && generic.cache === undefined && generic.discard === undefined)
    return session;
  return {
    ...session,
    forceShare: session.forceShare || generic.forceShare === true,
    cache: generic.cache ?? session.cache,
    discard: generic.discard ?? session.discard,
  };
}

export function refuseRest(flat: FlatOptions, kind: 'format' | 'protocol', driver: string): void {
  const key = flat.firstKey;
  if (key === undefined) return;
  throw new ImageError(
    'invalid',
    kind === 'format'
      ? `Block format '${driver}' does not support the option '${key}'`
      : `Block protocol '${driver}' doesn't support the option '${key}'`,
  );
}

/** What a filename means: a path, or options. */
export function flatFromFilename(filename: string): FlatOptions {
  if (filename.startsWith('json:')) return fromJson(filename.slice('json:'.length));
  const flat = new FlatOptions();
  const protocol = protocolOf(filename);
  if (protocol === undefined) flat.set('file.filename', filename);
  else if (protocol === 'file') flat.set('file.filename', filename.slice('file:'.length));
  else if (protocol === 'host_device') {
    flat.set('file.driver', 'host_device');
    flat.set('file.filename', filename.slice('host_device:'.length));
  } else if (protocol === 'null-co' || protocol === 'null-aio') {
    flat.set('file.driver', protocol);
  } else throw new ImageError('invalid', `Unknown protocol '${protocol}'`);
  return flat;
}

export interface OpenedFile {
  readonly storage: Storage;
  readonly path: string | undefined;
  /** The host file behind it, for locks; undefined for null and the like. */
  readonly lockable: FileStorage | undefined;
}

export async function openStorage(
  flat: FlatOptions,
  session: Session,
  how: { readonly writable: boolean; readonly reason: OpenReason; readonly exposed?: string },
): Promise<OpenedFile> {
  if (++session.count.files > MAX_FILES)
    throw new ImageError('limit', 'The image consists of too many files');
  const driver = flat.takeString('driver') ?? 'file';
  const own = inherit(session, takeGeneric(flat));
  if (driver === 'null-co' || driver === 'null-aio') {
    const given = flat.takeDeclared(NULL_OPTIONS);
    const storage = new NullStorage({
      driver,
      writable: how.writable,
      ...(given.size === undefined ? {} : { size: given.size as number }),
      ...(given['latency-ns'] === undefined ? {} : { latencyNs: given['latency-ns'] as number }),
      readZeroes: given['read-zeroes'] === true,
    });
    refuseRest(flat, 'protocol', driver);
    return { storage, path: undefined, lockable: undefined };
  }
  if (driver !== 'file' && driver !== 'host_device') {
    throw new ImageError('invalid', `Unknown driver '${driver}'`);
  }
  const filename = flat.takeString('filename');
  if (filename === undefined || filename === '') {
    throw new ImageError('invalid', `The '${driver}' block driver requires a file name`);
  }
  const locking = flat.takeString('locking') ?? 'auto';
  if (locking !== 'auto' && locking !== 'on' && locking !== 'off') {
    throw new ImageError('invalid', `Parameter 'locking' does not accept value '${locking}'`);
  }
  flat.take('aio');
  flat.take('drop-cache');
  flat.take('x-check-cache-dropped');
  flat.take('aio-max-batch');
  refuseRest(flat, 'protocol', driver);
  const path = absolutePath(filename, session.context.cwd);
  checkAllowed(path, filename, how.reason, session.context.policy);
  const storage = await openFile({
    path,
    filename: how.exposed ?? filename,
    writable: how.writable,
    cache: own.cache,
    ...(own.discard === undefined ? {} : { discard: own.discard }),
    ...(driver === 'host_device' ? { driver } : {}),
    // What it will be used for is known when its format is.
    locks: locking === 'off' ? undefined : { uses: NO_PERMISSIONS, shares: ALL_PERMISSIONS },
  });
  return { storage, path, lockable: storage };
}

/** The identity of a host file: two names of one file are one image. */
export function identity(path: string): string | undefined {
  try {
    const { dev, ino } = statSync(path);
    return `${dev}:${ino}`;
  } catch {
    return undefined;
  }
}

/** Locks an opened file for what it will be used for. Throws `locked`. */
export function lock(opened: OpenedFile, role: FileRole, writable: boolean, session: Session): void {
  const locks = opened.lockable?.locks;
  if (locks === undefined) return;
  const { resize = false, metadataOnly = false, stable = false } = session.options;
  locks.setPermissions(
    permissionsFor({
      role,
      writable,
      resize: resize && writable,
      forceShare: session.forceShare,
      metadataOnly,
      stable: stable && session.layers.length === 0,
    }),
  );
}
