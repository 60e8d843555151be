/** Opening the files that images are made of: options to storages, through the gate, under QEMU's locks. */
import { readFileSync, statSync } from 'node:fs';
import type { CacheMode } from '../../protocol/commands/common.js';
import { errnoText, ImageError } from '../error.js';
import { driverNames } from '../formats/index.js';
import type { OperationContext } from '../operations/context.js';
import { type FileOptions, type FileStorage, openFile, reopenFile } from '../storage/file.js';
import { permissionsFor } from '../storage/locks.js';
import { NullStorage } from '../storage/null.js';
import { ALL_PERMISSIONS, type FileUse, NO_PERMISSIONS, type Permissions } from '../storage/permissions.js';
import type { Storage } from '../storage/storage.js';
import type { FilterContext } from './filters/filter.js';
import { filterNames, isFilter, loadFilter } from './filters/index.js';
import { FlatOptions, fromJson, protocolOf, withoutProtocol } from './flat-options.js';
import { absolutePath, checkAllowed, confine, type OpenReason } from './gate.js';
import type { ImageNode, NodeName } from './image.js';
import { fileName, shownName } from './node-name.js';
import type { FileReopen, GraphNode, NodeSettings } from './node-scope.js';
import { NodeStorage } from './node-storage.js';
import type { OpenedFile } from './opened-file.js';
import type { OptionDeclaration } from './option-table.js';
import type { Rehearsal } from './rehearsal.js';

/** Filters one inside the other in a filename. */
const MAX_NAMED = 16;
/** Rule files and the like are small. */
const MAX_TEXT = 1024 * 1024;
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
  /** Where it is written, nothing but guest bytes is changed: others may read it meanwhile. */
  readonly guestOnly?: boolean;
  /** Zeros give host space back, also where the options say nothing about `discard`. */
  readonly unmap?: boolean;
  /** Whatever is opened for writing keeps its changes in memory. */
  readonly rehearsal?: Rehearsal | undefined;
}

type FileRole = FileUse['role'];

/** What one call of openImage has opened, for loops, limits and clean-up. */
export interface Session {
  readonly context: OperationContext;
  readonly options: OpenOptions;
  readonly cache: CacheMode;
  readonly forceShare: boolean;
  readonly discard: 'ignore' | 'unmap' | undefined;
  /** Asked for by name, whatever became of it. */
  readonly direct?: boolean | undefined;
  /** Device and inode of each layer from the top down to the one being opened. */
  readonly layers: string[];
  /** Opens an image from its options, with its backing chain. */
  readonly openImage: (flat: FlatOptions, session: Session, how: OpenHow) => Promise<ImageNode>;
  /** Shared by all that inherit from this session. */
  readonly count: { files: number };
  /** Where nodes are to be held: the one whose children are being opened. */
  readonly parent?: GraphNode;
  /** The names being opened are an image's own: those of nodes are not for it. */
  readonly fromImage?: boolean;
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

/** Drivers whose bytes are a guest's as they are, without a format. */
export const PROTOCOLS = new Set(['file', 'host_device', 'null-co', 'null-aio', ...filterNames]);

export interface GenericOptions {
  readonly nodeName: string | undefined;
  readonly detectZeroes: NodeSettings['detectZeroes'];
  readonly direct: boolean | undefined;
  readonly noFlush: boolean | undefined;
  readonly readOnly: boolean | undefined;
  readonly forceShare: boolean | undefined;
  readonly cache: CacheMode | undefined;
  readonly discard: 'ignore' | 'unmap' | undefined;
}

export function takeGeneric(flat: FlatOptions): GenericOptions {
  // Nothing here acts on it.
  flat.takeBool('auto-read-only');
  const direct = flat.takeBool('cache.direct');
  const noFlush = flat.takeBool('cache.no-flush');
  flat.take('cache.writeback');
  const discard = flat.takeText('discard');
  if (discard !== undefined && !['ignore', 'off', 'unmap', 'on'].includes(discard)) {
    throw new ImageError('invalid', 'Invalid discard option');
  }
  const detectZeroes = flat.takeText('detect-zeroes') ?? 'off';
  if (detectZeroes !== 'off' && detectZeroes !== 'on' && detectZeroes !== 'unmap') {
    throw new ImageError('invalid', `invalid parameter value: ${detectZeroes}`);
  }
  return {
    nodeName: flat.takeText('node-name'),
    detectZeroes,
    direct,
    noFlush,
    readOnly: flat.takeBool('read-only'),
    forceShare: flat.takeBool('force-share'),
    cache: noFlush === true ? 'unsafe' : direct === true ? 'none' : undefined,
    discard: discard === undefined ? undefined : discard === 'unmap' || discard === 'on' ? 'unmap' : 'ignore',
  };
}

/** The session for what is below a node that set options of its own. */
export function inherit(session: Session, generic: GenericOptions): Session {
  if (
    generic.forceShare !== true &&
    generic.cache === undefined &&
    generic.discard === undefined &&
    generic.direct === undefined &&
    generic.noFlush === undefined
  )
    return session;
  return {
    ...session,
    forceShare: session.forceShare || generic.forceShare === true,
    cache: generic.cache ?? session.cache,
    direct: generic.direct ?? session.direct,
    discard: generic.discard ?? session.discard,
  };
}

/** `session`: as inherited. */
export function checkDetectZeroes(generic: GenericOptions, session: Session): void {
  if (generic.detectZeroes !== 'unmap' || session.discard === 'unmap') return;
  throw new ImageError(
    'invalid',
    'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
  );
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
export function flatFromFilename(filename: string, depth = 0): FlatOptions {
  if (filename.startsWith('json:')) return fromJson(filename.slice('json:'.length));
  const flat = new FlatOptions();
  const protocol = protocolOf(filename);
  if (protocol === undefined) flat.set('file.filename', filename);
  else if (protocol === 'file' || protocol === 'host_device') {
    flat.set('file.driver', protocol);
    flat.set('file.filename', withoutProtocol(filename));
  } else if (protocol === 'null-co' || protocol === 'null-aio') {
    flat.set('file.driver', protocol);
  } else if (protocol === 'blkdebug' || protocol === 'blkverify') {
    if (depth >= MAX_NAMED) throw new ImageError('limit', 'A filename names too many filters');
    setFilter(flat, protocol, filename, depth + 1);
  } else throw new ImageError('invalid', `Unknown protocol '${protocol}'`);
  return flat;
}

/** `blkdebug:CONFIG:IMAGE`, where CONFIG may be empty, and `blkverify:RAW:TEST`. */
function setFilter(
  flat: FlatOptions,
  filter: 'blkdebug' | 'blkverify',
  filename: string,
  depth: number,
): void {
  const [, first, image] = /^\w+:([^:]*):(.*)$/s.exec(filename) ?? [];
  if (first === undefined || image === undefined) {
    const needed =
      filter === 'blkdebug' ? 'both config file and image path' : 'raw copy and original image path';
    throw new ImageError('invalid', `${filter} requires ${needed}`);
  }
  flat.set('file.driver', filter);
  const inner = flatFromFilename(image, depth);
  if (filter === 'blkverify') {
    flat.set('file.raw.filename', first);
    // The image is probed, where its options say no driver.
    for (const [key, value] of inner.entries()) flat.set(`file.test.${key}`, value);
    return;
  }
  if (first !== '') flat.set('file.config', first);
  const child = image.startsWith('json:') ? inner : inner.takeChild('file');
  for (const [key, value] of child.entries()) flat.set(`file.image.${key}`, value);
}

export type { OpenedFile } from './opened-file.js';

/** What a held node is told to be, its session's settings and its own together. */
export function settingsOf(
  driver: string,
  generic: GenericOptions,
  session: Session,
  writable: boolean,
): NodeSettings {
  return {
    nodeName: generic.nodeName,
    driver,
    readOnly: !writable,
    forceShare: session.forceShare,
    direct: session.cache === 'none' || session.cache === 'directsync' || session.direct === true,
    noFlush: session.cache === 'unsafe',
    discard: generic.discard,
    detectZeroes: generic.detectZeroes,
  };
}

/** A node that the name stands for, as the bytes below another; undefined where nothing is known by names. */
export async function namedStorage(
  name: string,
  session: Session,
  use: { readonly child: string; readonly writable: boolean },
): Promise<OpenedFile> {
  const { nodes } = session.context;
  if (nodes !== undefined) {
    refuseFromImage(name, session);
    const opened = await nodes.storage(name, { ...use, parent: session.parent });
    session.context.trace?.file(opened.storage);
    return use.writable ? (session.options.rehearsal?.opened(opened) ?? opened) : opened;
  }
  throw new ImageError('invalid', `Cannot find device='${name}' nor node-name='${name}'`);
}

/** An image that names a node would get at what is held for somebody else. */
export function refuseFromImage(name: string, session: Session): void {
  if (session.fromImage !== true) return;
  throw new ImageError('denied', `An image may not name the node '${name}'`, { check: 'node-in-image' });
}

export interface OpenHow {
  /** What the file is to the node above: `file` where absent. */
  readonly child?: string;
  readonly writable: boolean;
  readonly reason: OpenReason;
  /** The name that messages use instead of the file's own. */
  readonly exposed?: string;
}

export async function openStorage(flat: FlatOptions, session: Session, how: OpenHow): Promise<OpenedFile> {
  if (++session.count.files > MAX_FILES)
    throw new ImageError('limit', 'The image consists of too many files');
  const kind = flat.takeString('driver');
  const driver = kind ?? 'file';
  if (driverNames.includes(driver)) {
    flat.set('driver', driver);
    return openNode(flat, session, how);
  }
  const generic = takeGeneric(flat);
  const own = inherit(session, generic);
  checkDetectZeroes(generic, own);
  const { builder } = session.context.nodes ?? {};
  const writable = how.writable && generic.readOnly !== true;
  if (builder === undefined) {
    const { opened } = await openProtocol(driver, flat, own, { ...how, kind });
    if (writable === how.writable) return opened;
    await opened.storage.close().catch(() => {});
    throw new ImageError('read-only', 'Block node is read-only');
  }
  if (how.writable && !writable && session.parent !== undefined) {
    throw new ImageError('read-only', 'Block node is read-only');
  }
  const node = builder.begin(settingsOf(driver, generic, own, writable));
  const { opened, reopen } = await openProtocol(
    driver,
    flat,
    { ...own, parent: node },
    { ...how, writable, kind },
  );
  const { child = 'file' } = how;
  return builder.storage(node, opened, { child, parent: session.parent, ...(reopen && { reopen }) });
}

interface OpenedProtocol {
  readonly opened: OpenedFile;
  /** Opens a host file anew with other settings. */
  readonly reopen?: (to: FileReopen, locks: Permissions, from: Storage) => Promise<Storage>;
}

/** Options of host files that nothing here acts on. */
const FILE_OPTIONS: readonly OptionDeclaration[] = [{ name: 'aio-max-batch', type: 'number', help: '' }];

function takeOneOf(flat: FlatOptions, key: string, allowed: readonly string[]): string | undefined {
  const value = flat.takeText(key);
  if (value === undefined || allowed.includes(value)) return value;
  throw new ImageError('invalid', `invalid parameter value: ${value}`);
}

async function openProtocol(
  driver: string,
  flat: FlatOptions,
  own: Session,
  how: OpenHow & { readonly kind: string | undefined },
): Promise<OpenedProtocol> {
  const session = own;
  if (driver === 'null-co' || driver === 'null-aio') {
    const options = flat.takeDeclared(NULL_OPTIONS);
    const plain = options.size === undefined && options['read-zeroes'] === undefined;
    const name: NodeName = {
      plain: plain ? `${driver}://` : undefined,
      options: { driver, ...options },
      home: undefined,
    };
    const storage = new NullStorage({
      driver,
      filename: shownName(name),
      writable: how.writable,
      ...(options.size === undefined ? {} : { size: options.size as number }),
      ...(options['latency-ns'] === undefined ? {} : { latencyNs: options['latency-ns'] as number }),
      readZeroes: options['read-zeroes'] === true,
    });
    refuseRest(flat, 'protocol', driver);
    session.context.trace?.file(storage);
    return { opened: { storage, path: undefined, name, lockables: [] } };
  }
  if (isFilter(driver)) {
    const filter = await loadFilter(driver);
    const opened = await filter.open(filterContext(flat, own, how));
    try {
      refuseRest(flat, filter.protocol === true ? 'protocol' : 'format', driver);
      return { opened };
    } catch (error) {
      await opened.storage.close().catch(() => {});
      throw error;
    }
  }
  if (driver !== 'file' && driver !== 'host_device') {
    throw new ImageError('invalid', `Unknown driver '${driver}'`);
  }
  const filename = flat.takeString('filename');
  if (filename === undefined || filename === '') {
    throw new ImageError('invalid', `The '${driver}' block driver requires a file name`);
  }
  const locking = takeOneOf(flat, 'locking', ['auto', 'on', 'off']) ?? 'auto';
  const direct = own.cache === 'none' || own.cache === 'directsync';
  if (takeOneOf(flat, 'aio', ['threads', 'native', 'io_uring']) === 'native' && !direct) {
    const text = 'aio=native was specified, but it requires cache.direct=on, which was not specified.';
    throw new ImageError('invalid', text);
  }
  const manager = flat.takeString('pr-manager');
  if (manager !== undefined) {
    throw new ImageError('not-found', `No persistent reservation manager with id '${manager}'`);
  }
  flat.takeBool('drop-cache');
  flat.takeBool('x-check-cache-dropped');
  flat.takeDeclared(FILE_OPTIONS);
  refuseRest(flat, 'protocol', driver);
  const path = absolutePath(filename, session.context.cwd);
  checkAllowed(path, filename, how.reason, session.context.policy);
  const options: FileOptions = {
    path,
    filename: how.exposed ?? filename,
    writable: how.writable,
    cache: own.cache,
    ...(own.discard === undefined ? {} : { discard: own.discard }),
    // Where no driver is named, the file decides.
    ...(how.kind === undefined ? {} : { driver }),
    owner: session.context.owner,
    observer: session.context.trace,
    confined: confine(filename, how.reason, session.context.policy),
  };
  const storage = await openFile({
    ...options,
    // What it will be used for is known when its format is.
    locks: locking === 'off' ? undefined : { uses: NO_PERMISSIONS, shares: ALL_PERMISSIONS },
  });
  const reopen = (locks: Permissions) =>
    reopenFile(storage, { ...options, create: 'no', writable: true, locks });
  const opened = { storage, path, name: fileName(driver, storage.filename), lockables: [storage], reopen };
  return {
    opened: session.options.rehearsal?.opened(opened) ?? opened,
    reopen: ({ writable, direct, noFlush, discard }, locks, from) => {
      const cache = noFlush ? 'unsafe' : direct ? 'none' : 'writeback';
      const { discard: _, ...rest } = options;
      const changed = { ...rest, writable, cache, ...(discard === undefined ? {} : { discard }) } as const;
      return reopenFile(from as FileStorage, { ...changed, create: 'no', locks });
    },
  };
}

/** An image as the storage of another node. It has its own locks, and its backing chain whatever was asked of the one above. */
async function openNode(flat: FlatOptions, session: Session, how: OpenHow): Promise<OpenedFile> {
  const inner = { ...session, options: { ...session.options, noBacking: false } };
  const image = await session.openImage(flat, inner, { child: 'file', ...how });
  return {
    storage: new NodeStorage(image),
    path: image.path,
    name: image.name,
    lockables: session.context.nodes?.lockables(image) ?? [],
    reopen: async () => new NodeStorage(await image.reopenWritable()),
  };
}

function filterContext(flat: FlatOptions, session: Session, how: OpenHow): FilterContext {
  return {
    flat,
    writable: how.writable,
    unsafe: session.cache === 'unsafe',
    throttleGroup: (id) => session.context.throttleGroups?.get(id),
    async openChild(child, { strict = false } = {}) {
      const reference = flat.takeString(child);
      if (reference !== undefined) {
        if (session.context.nodes !== undefined) {
          return namedStorage(reference, session, { child, writable: how.writable });
        }
        throw new ImageError('invalid', `Cannot find device='${reference}' nor node-name='${reference}'`);
      }
      const options = flat.takeChild(child);
      if (options.empty) {
        throw new ImageError('invalid', `A block device must be specified for "${child}"`);
      }
      const rest = { writable: how.writable, reason: how.reason, child };
      if (options.has('driver')) return openStorage(options, session, rest);
      if (options.hasChild('file')) return openNode(options, session, rest);
      if (strict) throw new ImageError('invalid', 'Must specify either driver or file');
      return openStorage(options, session, rest);
    },
    async readText(filename) {
      const path = absolutePath(filename, session.context.cwd);
      checkAllowed(path, filename, how.reason, session.context.policy);
      if (statSync(path).size > MAX_TEXT) throw new ImageError('limit', errnoText('EFBIG'), { path });
      return readFileSync(path, 'utf8');
    },
  };
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
  const files = opened.lockables.filter((file) => file.locks !== undefined);
  if (files.length === 0) return;
  const { resize = false, metadataOnly = false, stable = false } = session.options;
  const permissions = permissionsFor({
    role,
    writable,
    resize: resize && writable,
    forceShare: session.forceShare,
    metadataOnly,
    stable: stable && session.layers.length === 0,
  });
  for (const file of files) {
    file.locks!.setPermissions(permissions);
    if (writable) session.options.rehearsal?.locked(file.locks!, permissions);
  }
}
