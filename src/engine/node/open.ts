/**
 * Opening an image: options to storages to format nodes to chains. Every file that is opened on the way passes the gate,
 * takes QEMU's locks, and counts against the chain's limits.
 */
import { isAbsolute } from 'node:path';
import type { ImageRef } from '../../protocol/commands/common.js';
import { hostError, ImageError } from '../error.js';
import { loadDriver } from '../formats/index.js';
import type { OperationContext } from '../operations/context.js';
import { permissionsFor } from '../storage/permissions.js';
import type { Storage } from '../storage/storage.js';
import type { FormatDriver, FormatNode, OpenContext } from './driver.js';
import { FlatOptions, fromOptionString, protocolOf } from './flat-options.js';
import { type OpenReason, relativeTo } from './gate.js';
import { ImageNode, type NodeName } from './image.js';
import { imageName } from './node-name.js';
import { NodeStorage } from './node-storage.js';
import {
  checkDetectZeroes,
  flatFromFilename,
  identity,
  inherit,
  lock,
  namedStorage,
  type OpenOptions,
  openStorage,
  PROTOCOLS,
  refuseFromImage,
  refuseRest,
  type Session,
  settingsOf,
  takeGeneric,
} from './open-storage.js';
import { probe, rawGuard } from './probe.js';

/** More layers than any sane chain; a hostile chain of symlinks or of json: names ends here. */
const MAX_CHAIN = 256;

async function findDriver(name: string): Promise<FormatDriver> {
  const driver = await loadDriver(name);
  if (driver === undefined) throw new ImageError('invalid', `Unknown driver '${name}'`);
  return driver;
}

/** Opens one layer and, below it, its backing chain. `filename` is the name for messages and for relative names. */
async function openLayer(
  flat: FlatOptions,
  filename: string,
  session: Session,
  how: {
    readonly writable: boolean;
    readonly reason: OpenReason;
    /** What the layer is to the node above. */
    readonly child?: string;
  },
): Promise<ImageNode> {
  const { context, options } = session;
  let driverName = flat.takeString('driver');
  const generic = takeGeneric(flat);
  const writable = how.writable && generic.readOnly !== true;
  if (flat.peek('backing') === '') {
    warningTo(context)('Use of "backing": "" is deprecated; use "backing": null instead');
  }
  if ((generic.forceShare ?? session.forceShare) && writable) {
    throw new ImageError('invalid', 'force-share=on can only be used with read-only images');
  }
  let scope = inherit(session, generic);
  // `driver=file,filename=x` names the protocol itself: its bytes are the guest's.
  const bare = driverName !== undefined && PROTOCOLS.has(driverName);
  if (driverName !== undefined && !bare) await findDriver(driverName);
  const builder = bare ? undefined : context.nodes?.builder;
  const node = builder?.begin(settingsOf(driverName ?? 'raw', generic, scope, writable));
  if (node !== undefined) scope = { ...scope, parent: node };

  let fileOptions: FlatOptions;
  let fileNode: string | undefined;
  if (bare) {
    fileOptions = flat;
    fileOptions.set('driver', driverName!);
    flat = new FlatOptions();
    driverName = 'raw';
  } else {
    fileNode = flat.takeString('file');
    if (fileNode === undefined && !flat.hasChild('file')) {
      throw new ImageError(
        'invalid',
        driverName === undefined
          ? 'Must specify either driver or file'
          : `A block device must be specified for "file"`,
      );
    }
    fileOptions = flat.takeChild('file');
  }

  const opened =
    fileNode === undefined
      ? await openStorage(fileOptions, scope, { writable, reason: how.reason })
      : await namedStorage(fileNode, scope, { child: 'file', writable });
  const file = opened.storage;
  let format: FormatNode | undefined;
  let backing: ImageNode | undefined;
  const id = opened.path === undefined ? undefined : identity(opened.path);
  try {
    checkDetectZeroes(generic, scope);
    if (id !== undefined && session.layers.includes(id)) {
      throw new ImageError('invalid', `Backing file loop: '${filename}' is already part of the chain`, {
        path: filename,
        check: 'backing-loop',
      });
    }
    const probed = driverName === undefined;
    const driver = probed ? await probe(file) : await findDriver(driverName!);
    const isRaw = driver.name === 'raw';
    const role = isRaw ? 'raw-data' : 'format-metadata';
    // What a held raw image needs is what its users need: nothing yet.
    if (builder === undefined || !isRaw) lock(opened, role, writable, scope);
    let guardStart: ((head: Uint8Array) => boolean) | undefined;
    if (probed && isRaw && writable) {
      guardStart = await rawGuard(file.filename, file.size);
      context.output({
        stream: 'stderr',
        text:
          `WARNING: Image format was not specified for '${filename.replace(/^file:/, '')}' and probing guessed raw.\n` +
          '         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n' +
          "         Specify the 'raw' format explicitly to remove the restrictions.\n",
      });
    }
    const openFormat = async (storage: Storage, from: FlatOptions, forWriting: boolean) => {
      // Such a node is its file, which has been told of.
      if (!bare) {
        context.trace?.opening({ file: storage, driver: driver.name, filename, writable: forWriting });
      }
      const node = await driver.open({
        file: storage,
        writable: forWriting,
        options: from.takeDeclared(driver.openOptions),
        forCheck: options.forCheck ?? false,
        metadataOnly: options.metadataOnly ?? false,
        openChild: async (child, recorded, childHow) => {
          if (childHow?.unopened === true) {
            from.takeChild(child);
            from.take(child);
            return undefined;
          }
          return openChildFile(from, opened.name, child, recorded, scope, {
            writable: childHow?.writable ?? forWriting,
            inCwd: childHow?.inCwd ?? false,
          });
        },
        warn: warningTo(context),
        say: (line) => context.output({ stream: 'stderr', text: `${line}\n` }),
        backed: from.hasChild('backing'),
      });
      if (bare || storage.driver !== 'blkdebug') return node;
      return (await import('./filters/events.js')).withEvents(node, storage);
    };
    const name = bare ? opened.name : imageName(driver.name, opened.name, flat, file instanceof NodeStorage);
    let again = writable && builder === undefined ? undefined : new FlatOptions(flat.entries());
    if (node !== undefined) builder!.place(node);
    const reading = await openFormat(file, flat, writable);
    format = reading;
    backing = await openBacking(flat, format, filename, opened.name, {
      ...scope,
      layers: id === undefined ? scope.layers : [...scope.layers, id],
    });
    refuseRest(flat, 'format', driver.name);
    if (writable !== how.writable && builder === undefined) {
      throw new ImageError('read-only', 'Block node is read-only');
    }
    const reopen = async () => {
      const storage = await opened.reopen!(permissionsFor({ role, writable: true, resize: true }));
      try {
        // What the format opened itself goes first: its locks would be in the way of the new ones.
        await reading.close();
        const guard = probed && isRaw ? await rawGuard(storage.filename, storage.size) : undefined;
        const writing = await openFormat(storage, new FlatOptions(again!.entries()), true);
        return { format: writing, file: storage, guardStart: guard };
      } catch (error) {
        await storage.close().catch(() => {});
        throw error;
      }
    };
    const image = new ImageNode({
      filename,
      path: opened.path,
      driver,
      format,
      file,
      backing,
      writable,
      name,
      guardStart,
      reopen: again === undefined || opened.reopen === undefined ? undefined : reopen,
    });
    image.detectZeroes = generic.detectZeroes;
    context.trace?.opened(image);
    if (node === undefined) return image;
    builder!.layer(node, {
      image,
      passes: isRaw,
      lockFile: (permissions) => {
        for (const { locks } of opened.lockables) locks?.setPermissions(permissions);
      },
      rehearse: (on) => openFormat(on, new FlatOptions(again!.entries()), true),
      async reload(change) {
        const { options: wanted = again! } = change;
        const from = new FlatOptions(wanted.entries());
        const { writable: forWriting } = change;
        await image.format.close();
        const anew = await openFormat(file, from, forWriting);
        again = wanted;
        let { backing: below } = image;
        image.replace({ format: anew, backing: below, writable: forWriting });
        if (change.backing === 'keep') return;
        await below?.close();
        image.replace({ format: anew, backing: undefined, writable: forWriting });
        const layers = id === undefined ? scope.layers : [...scope.layers, id];
        below = await openBacking(from, anew, filename, opened.name, { ...scope, layers });
        image.replace({ format: anew, backing: below, writable: forWriting });
      },
    });
    return builder!.view(node, how.child ?? 'root', session.parent);
  } catch (error) {
    await format?.close().catch(() => {});
    await file.close().catch(() => {});
    await backing?.close().catch(() => {});
    throw error;
  }
}

async function openChildFile(
  flat: FlatOptions,
  image: NodeName,
  child: string,
  recorded: string | undefined,
  session: Session,
  { writable, inCwd }: { readonly writable: boolean; readonly inCwd: boolean },
): Promise<Storage | undefined> {
  let childOptions: FlatOptions;
  let reason: OpenReason = 'caller';
  let exposed: string | undefined;
  if (flat.hasChild(child)) {
    childOptions = flat.takeChild(child);
  } else if (recorded !== undefined) {
    reason = 'child';
    exposed = inCwd ? recorded : placed(image, recorded);
    childOptions = flatFromFilename(exposed).takeChild('file');
  } else return undefined;
  const inner = reason === 'child' ? { ...session, fromImage: true } : session;
  const opened = await openStorage(childOptions, inner, {
    writable,
    reason,
    child,
    ...(exposed === undefined ? {} : { exposed }),
  });
  try {
    const { builder } = session.context.nodes ?? {};
    // What guest data in a file of its own needs is what the users of the held image need.
    if (child === 'data-file' && builder !== undefined && session.parent !== undefined) {
      builder.data(session.parent, child, opened.lockables);
    } else lock(opened, child === 'data-file' ? 'data-file' : 'format-metadata', writable, session);
  } catch (error) {
    await opened.storage.close().catch(() => {});
    throw error;
  }
  return opened.storage;
}

async function openBacking(
  flat: FlatOptions,
  format: FormatNode,
  imageName: string,
  file: NodeName,
  session: Session,
): Promise<ImageNode | undefined> {
  const none = flat.peek('backing');
  if (none === null || none === '') {
    flat.take('backing');
    return undefined;
  }
  // Options for one are options that nobody knows.
  if (session.options.noBacking === true) return undefined;
  const given = flat.hasChild('backing');
  const reference = flat.take('backing');
  if (typeof reference === 'string') {
    const { nodes } = session.context;
    if (nodes !== undefined) {
      try {
        refuseFromImage(reference, session);
        return await nodes.backing(reference, session.parent);
      } catch (error) {
        throw hostError('Could not open backing file', error);
      }
    }
    throw new ImageError(
      'invalid',
      `Could not open backing file: Cannot find device='${reference}' nor node-name='${reference}'`,
    );
  }
  const recorded = format.backing;
  if (!given && recorded === undefined) return undefined;
  if (session.layers.length >= MAX_CHAIN) {
    throw new ImageError('limit', `The backing chain of '${imageName}' has more than ${MAX_CHAIN} layers`);
  }
  const options = flat.takeChild('backing');
  const named = recorded !== undefined && !options.hasChild('file');
  const name = named ? placed(file, recorded.filename) : (recorded?.filename ?? '');
  try {
    // Before the name's own: a format that is recorded counts more than a driver in a `json:` name.
    if (recorded?.format !== undefined && !options.has('driver')) options.set('driver', recorded.format);
    if (named) {
      for (const [key, value] of flatFromFilename(name).entries()) {
        if (!options.has(key)) options.set(key, value);
      }
    }
    const below = named ? { ...session, fromImage: true } : session;
    const layer = await openLayer(options, name, below, {
      writable: false,
      reason: given ? 'caller' : 'backing',
      child: 'backing',
    });
    return layer;
  } catch (error) {
    throw hostError('Could not open backing file', error);
  }
}

/** The full name of a file that an image names, or undefined where relative names have no folder to belong to. */
export function recordedPath({ home }: NodeName, recorded: string): string | undefined {
  if (home !== undefined) return backingPath(home, recorded);
  const full = isAbsolute(recorded) || recorded.startsWith('json:') || protocolOf(recorded) !== undefined;
  return full ? recorded : undefined;
}

function placed(image: NodeName, recorded: string): string {
  const path = recordedPath(image, recorded);
  if (path !== undefined) return path;
  throw new ImageError('invalid', `Cannot generate a base directory for ${image.options.driver} nodes`);
}

/** The full name of a backing file, as `info` shows it: relative names belong to the image's folder. */
export function backingPath(imageName: string, backing: string): string {
  if (backing.startsWith('json:')) return backing;
  const protocol = protocolOf(backing);
  if (protocol !== undefined) return backing;
  if (imageName.startsWith('json:')) return backing;
  return relativeTo(imageName.startsWith('file:') ? imageName.slice('file:'.length) : imageName, backing);
}

/** The name of an image in messages: what the user gave. */
export function displayName(ref: ImageRef): string {
  return ref['image-opts'] ?? ref.filename ?? ref.node ?? '';
}

/** Opens an image and its chain. Errors have `Could not open 'x': ` in front. The caller closes the node. */
export async function openImage(
  ref: ImageRef,
  options: OpenOptions,
  context: OperationContext,
): Promise<ImageNode> {
  const name = displayName(ref);
  const session: Session = {
    context,
    options,
    cache: ref.cache ?? options.cache ?? 'writeback',
    forceShare: ref['force-share'] ?? options.forceShare ?? false,
    layers: [],
    discard: options.unmap === true ? 'unmap' : undefined,
    openImage: (flat, inner, how) => openLayer(flat, filenameIn(flat) ?? '', inner, how),
    count: { files: 0 },
  };
  try {
    const node = nodeOf(ref, context);
    if (node !== undefined) {
      const view = await context.nodes!.image(node, { ...options, forceShare: session.forceShare });
      context.trace?.held(view, node);
      return view;
    }
    if (ref['image-opts'] === undefined && ref.filename === undefined) {
      throw new ImageError('invalid', 'an image needs a filename, image-opts or node');
    }
    const flat =
      ref['image-opts'] !== undefined
        ? fromOptionString(ref['image-opts'], warningTo(context))
        : flatFromFilename(ref.filename!);
    // Also over the driver that a `json:` name says.
    if (ref.format !== undefined) flat.set('driver', ref.format);
    const image = await openLayer(flat, namedFile(ref, flat), session, {
      writable: options.writable ?? false,
      reason: 'caller',
    });
    if (options.writable === true && !image.writable) {
      await image.close();
      throw new ImageError('read-only', 'Block node is read-only');
    }
    return image;
  } catch (error) {
    throw hostError(`Could not open '${name}'`, error);
  }
}

function warningTo(context: OperationContext): OpenContext['warn'] {
  return (text, hint = '') =>
    context.output({ stream: 'stderr', text: `qemu-img: warning: ${text}\n${hint}` });
}

/** The held node that is meant: `node`, or an option string of one bare word. */
function nodeOf(ref: ImageRef, { nodes }: OperationContext): string | undefined {
  const { node, 'image-opts': text } = ref;
  if (node !== undefined) {
    if (ref.filename !== undefined || text !== undefined) {
      throw new ImageError('invalid', 'an image is named by its filename, by image-opts or by its node');
    }
    if (nodes === undefined)
      throw new ImageError('invalid', `Cannot find device='${node}' nor node-name='${node}'`);
    return node;
  }
  return nodes !== undefined && text !== undefined && /^[A-Za-z][\w.-]*$/.test(text) ? text : undefined;
}

/**
 * Opens a tree of nodes that are to be held, from options as QAPI has them, flat. `context.nodes` has a builder, which is told
 * of each node. Errors are as they are, without the name of the whole in front.
 */
export async function openTree(
  flat: FlatOptions,
  how: { readonly writable: boolean },
  context: OperationContext,
): Promise<void> {
  const session: Session = {
    context,
    options: {},
    cache: 'writeback',
    forceShare: false,
    layers: [],
    discard: undefined,
    openImage: (inner, below, innerHow) => openLayer(inner, filenameIn(inner) ?? '', below, innerHow),
    count: { files: 0 },
  };
  const driver = flat.take('driver') as string;
  flat.set('driver', driver);
  const { writable } = how;
  if (PROTOCOLS.has(driver)) await openStorage(flat, session, { writable, reason: 'caller', child: 'root' });
  else {
    const named = filenameIn(flat) ?? '';
    await openLayer(flat, named, session, { writable, reason: 'caller', child: 'root' });
  }
}

/** The file an image's relative names are relative to: the filename, or the one inside the options. */
function namedFile(ref: ImageRef, flat: FlatOptions): string {
  if (ref['image-opts'] === undefined && !ref.filename!.startsWith('json:')) return ref.filename!;
  return filenameIn(flat) ?? ref.filename ?? ref['image-opts']!;
}

function filenameIn(flat: FlatOptions): string | undefined {
  for (const [key, value] of flat.entries()) {
    if ((key === 'filename' || key === 'file.filename') && typeof value === 'string') return value;
  }
  return undefined;
}

export type { OpenOptions } from './open-storage.js';
