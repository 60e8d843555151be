/** image-create, and the making of an image file that convert shares with it. */
import { lstatSync, unlinkSync } from 'node:fs';
import type { FormatOptions } from '../../protocol/commands/common.js';
import type { ImageCreateParams, ImageCreateResult } from '../../protocol/commands/image-create.js';
import { ImageError } from '../error.js';
import type { FormatDriver } from '../node/driver.js';
import { absolutePath, checkAllowed, confine, relativeTo } from '../node/gate.js';
import { backingPath, openImage } from '../node/open.js';
import type { OptionValues } from '../node/option-table.js';
import type { Rehearsal } from '../node/rehearsal.js';
import { openFile } from '../storage/file.js';
import { permissionsFor } from '../storage/permissions.js';
import type { Storage } from '../storage/storage.js';
import type { OperationContext } from './context.js';
import { settleSize } from './create-backing.js';
import {
  type CreateOptions,
  creatableDriver,
  creatablePath,
  describeOptions,
  effectiveOptions,
  isFileOption,
  parseCreateOptions,
} from './create-options.js';
import { stage } from './staged.js';

/** QEMU's formats and protocols: what a backing file that is not looked at may be said to be. */
export const QEMU_FORMATS: ReadonlySet<string> = new Set([
  ...[
    'blkdebug',
    'blklogwrites',
    'blkreplay',
    'blkverify',
    'bochs',
    'cloop',
    'compress',
    'copy-before-write',
  ],
  ...['copy-on-read', 'dmg', 'file', 'ftp', 'ftps', 'gluster', 'host_cdrom', 'host_device', 'http', 'https'],
  ...['io_uring', 'iscsi', 'luks', 'nbd', 'nfs', 'null-aio', 'null-co', 'nvme', 'parallels', 'preallocate'],
  ...['qcow', 'qcow2', 'qed', 'quorum', 'raw', 'rbd', 'replication', 'snapshot-access', 'ssh', 'throttle'],
  ...['vdi', 'vhdx', 'vmdk', 'vpc', 'vvfat'],
]);

export interface CreateSpec {
  readonly filename: string;
  readonly format: string;
  /** Guest bytes; `size` among the options wins. */
  readonly size?: number;
  readonly options?: FormatOptions;
  readonly backing?: string;
  readonly 'backing-format'?: string;
  /** Where the file is made, for now; an image of several files is refused then. */
  readonly at?: string | undefined;
}

export interface CreatedImage {
  /** Absolute path of the new file. */
  readonly path: string;
  /** Absolute paths of the files that were not there before: the image and what belongs to it. */
  readonly created: readonly string[];
  readonly size: number;
}

/**
 * Creates an image file without looking at its backing file, and without a word. The file is emptied only once it is locked;
 * what a failing creation has begun is removed again. Not flushed to the disk.
 *
 * @throws ImageError in the reference's words, without the file's name in front.
 */
export async function createImage(
  spec: CreateSpec,
  context: OperationContext,
  files?: NewFiles,
): Promise<CreatedImage> {
  const { path, options } = await parseSpec(spec);
  return makeImage({ filename: spec.filename, name: path, at: spec.at }, options, false, context, files);
}

/** Refuses, before anything is touched, what `createImage` would not understand. */
export async function checkCreateSpec(spec: CreateSpec): Promise<void> {
  await parseSpec(spec);
}

/** What the format and the host refuse, without a file being touched. */
export async function checkCreate(spec: CreateSpec): Promise<void> {
  const { options } = await parseSpec(spec);
  checkValues(options);
}

async function parseSpec(spec: CreateSpec): Promise<{ path: string; options: CreateOptions }> {
  const driver = await creatableDriver(spec.format);
  const path = creatablePath(spec.filename);
  const options = parseCreateOptions(driver, spec.options ?? {}, spec.backing, spec['backing-format']);
  if (spec.size !== undefined) options.given.size ??= spec.size;
  return { path, options };
}

/** Names of a new image: as the user wrote it, its path in that, and where the file is made if not there; or a held node. */
export interface Place {
  readonly filename: string;
  readonly name: string;
  readonly at?: string | undefined;
  readonly node?: string | undefined;
}

/** Where the files of a new image come from in a dry run. */
export interface NewFiles {
  /** The image's own. */
  readonly file: Storage;
  /** Another one that belongs to it. */
  more(shown: string, path: string): Promise<Storage>;
}

/** Makes what was parsed. With `files` no other file is touched. */
export async function makeImage(
  { filename, name, at: stagedAt, node }: Place,
  options: CreateOptions,
  durable: boolean,
  context: OperationContext,
  files?: NewFiles,
): Promise<CreatedImage> {
  const { driver } = options;
  const { values, size } = checkValues(options);
  const path = stagedAt ?? absolutePath(name, context.cwd);
  const noCopyOnWrite = values.nocow === true;
  /** Files that were not there before, or that this call has emptied. */
  const made: string[] = [];
  const created: string[] = [];
  let file: Storage | undefined;
  const create = async (shown: string, at: string): Promise<Storage> => {
    if (files !== undefined) return files.more(shown, at);
    checkAllowed(at, shown, 'caller', context.policy);
    const existed = exists(at);
    const storage = await openFile({
      path: at,
      filename: shown,
      writable: true,
      // What has the temporary name by now is none of ours: a link that was put there would be followed.
      create: stagedAt === undefined ? 'truncate' : 'exclusive',
      noCopyOnWrite,
      cache: durable ? 'writeback' : 'unsafe',
      locks: permissionsFor({ role: 'create', writable: true }),
      owner: context.owner,
      observer: context.trace,
      confined: confine(shown, 'caller', context.policy),
    });
    made.push(at);
    if (!existed) created.push(at);
    return storage;
  };
  const extra = (shown: string): Promise<Storage> => {
    if (stagedAt === undefined) return create(shown, absolutePath(shown, context.cwd));
    throw new ImageError('unsupported', 'An image of several files cannot be made under a temporary name', {
      path: filename,
    });
  };
  try {
    if (files !== undefined) file = files.file;
    else file = node === undefined ? await create(name, path) : await heldFile(node, context);
    const backing = values.backing_file as string | undefined;
    const backingFormat = values.backing_fmt as string | undefined;
    await driver.create!({
      file,
      filename,
      size,
      options: values,
      ...(backing === undefined
        ? {}
        : {
            backing: { filename: backing, ...(backingFormat === undefined ? {} : { format: backingFormat }) },
          }),
      ...(backing === undefined
        ? {}
        : {
            inspectBacking: async () => {
              const ref = { filename: backingPath(filename, backing) };
              const image = await openImage(ref, { metadataOnly: true, noBacking: true }, context).catch(
                (error: unknown) => {
                  const prefix = `Could not open '${ref.filename}': `;
                  const twice = error instanceof ImageError && error.message.startsWith(prefix + prefix);
                  throw twice
                    ? new ImageError(error.kind, error.message.slice(prefix.length), error.context, error)
                    : error;
                },
              );
              try {
                return { format: image.driver.name, contentId: image.format.contentId };
              } finally {
                await image.close();
              }
            },
          }),
      // The driver closes what it asked for here.
      createExtra: (shown) => extra(relativeTo(name, creatablePath(shown))),
      openExtra: (shown) => extra(creatablePath(shown)),
    });
    if (durable) await file.flush();
    await file.close();
    return { path, created, size };
  } catch (error) {
    await file?.close().catch(() => {});
    for (const at of made) removeFile(at);
    throw error;
  }
}

/** The file of a held node, emptied, once nobody else uses it otherwise. */
export async function heldFile(
  node: string,
  { nodes }: OperationContext,
  rehearsal?: Rehearsal,
): Promise<Storage> {
  if (nodes === undefined) {
    throw new ImageError('not-found', `Cannot find device='${node}' nor node-name='${node}'`);
  }
  const use = { child: 'file', writable: true, parent: undefined };
  const { storage, lockables, path } = await nodes.storage(node, use);
  try {
    for (const { locks } of lockables)
      locks?.setPermissions(permissionsFor({ role: 'create', writable: true }));
    const file = rehearsal?.over(storage, path) ?? storage;
    await file.truncate(0);
    return file;
  } catch (error) {
    await storage.close().catch(() => {});
    throw error;
  }
}

export function checkValues(options: CreateOptions): { values: OptionValues; size: number } {
  const { driver } = options;
  const values = effectiveOptions(options);
  const size = values.size as number | undefined;
  if (size === undefined) throw new ImageError('invalid', 'Image creation needs a size parameter');
  checkFilePreallocation(driver, values.preallocation);
  checkBackingFormat(driver, values.backing_fmt);
  // The format's own words for a size that it cannot have go first.
  checkOptions(driver, values, size);
  if (size > Number.MAX_SAFE_INTEGER && driver.createsHuge !== true) {
    throw new ImageError('limit', 'File too large', { errno: 'EFBIG' });
  }
  return { values, size };
}

/** What the format refuses is refused before the file that has the name now is emptied. */
function checkOptions(driver: FormatDriver, values: OptionValues, size: number): void {
  const filename = values.backing_file as string | undefined;
  const format = values.backing_fmt as string | undefined;
  const backing =
    filename === undefined ? {} : { backing: { filename, ...(format === undefined ? {} : { format }) } };
  driver.checkCreate?.({ options: values, size, ...backing });
}

/** The file's own preallocation is checked before anything is touched. */
function checkFilePreallocation(driver: FormatDriver, value: unknown): void {
  if (value === undefined || !isFileOption(driver, 'preallocation')) return;
  if (value === 'off' || value === 'falloc' || value === 'full') return;
  throw value === 'metadata'
    ? new ImageError('unsupported', 'Unsupported preallocation mode: metadata')
    : new ImageError('invalid', `invalid parameter value: ${String(value)}`);
}

/** A backing file that is not opened may have any format that QEMU knows. */
function checkBackingFormat(driver: FormatDriver, value: unknown): void {
  if (value === undefined || QEMU_FORMATS.has(String(value))) return;
  const text = driver.unknownBackingFormat?.(String(value));
  throw new ImageError('invalid', text ?? `Parameter 'backing-fmt' does not accept value '${String(value)}'`);
}

function exists(path: string): boolean {
  try {
    lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Devices stay where they are. */
function removeFile(path: string): void {
  try {
    if (lstatSync(path).isFile()) unlinkSync(path);
  } catch {
    // Somebody else has removed it.
  }
}

/** Creates an image; what it will be is told on stdout before anything is touched. */
export async function create(
  params: ImageCreateParams,
  context: OperationContext,
): Promise<ImageCreateResult> {
  if (params['dry-run'] === true) {
    const { createPlan } = await import('./dry-run/create.js');
    return createPlan(params, context);
  }
  return named(params, () => createNamed(params, context));
}

/** Errors name the image. */
export async function named<T>({ filename }: ImageCreateParams, work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof ImageError && error.kind !== 'cancelled') throw error.prefixed(`${filename}: `);
    throw error;
  }
}

/** What is asked for in words: nothing is opened. */
export async function wantedImage(
  params: ImageCreateParams,
): Promise<{ readonly name: string; readonly options: CreateOptions }> {
  const driver = await creatableDriver(params.format ?? 'raw');
  const name = creatablePath(params.filename);
  const options = parseCreateOptions(driver, params.options ?? {}, params.backing, params['backing-format']);
  const { given } = options;
  if (params.size !== undefined) {
    if (given.size !== undefined) {
      throw new ImageError('invalid', 'The image size must be specified only once');
    }
    given.size = params.size;
  }
  return { name, options };
}

async function createNamed(params: ImageCreateParams, context: OperationContext): Promise<ImageCreateResult> {
  const { filename, format = 'raw' } = params;
  const { name, options } = await wantedImage(params);
  await settleSize(params, options, context);
  context.output({
    stream: 'stdout',
    text: `Formatting '${filename}', fmt=${format} ${describeOptions(options)}\n`,
  });
  const waits = context.pace(0);
  if (waits !== undefined) await waits;
  const { size } = await makeStaged(params, name, options, context).catch((error: unknown) => {
    throw sizeError(error, options);
  });
  return { filename, format, size, options: effectiveOptions(options) };
}

export function checkStaged(node: string | undefined): void {
  if (node !== undefined) throw new ImageError('invalid', "'atomic' is for new files, not for a held node");
}

async function makeStaged(
  { filename, node, atomic }: ImageCreateParams,
  name: string,
  options: CreateOptions,
  context: OperationContext,
): Promise<CreatedImage> {
  if (atomic !== true) return makeImage({ filename, name, node }, options, true, context);
  checkStaged(node);
  const staged = await stage(filename, context);
  let made = false;
  try {
    await staged.clear();
    const image = await makeImage({ filename, name, at: staged.path }, options, true, context);
    made = true;
    await staged.keep();
    await context.finalize?.();
    await staged.commit();
    return image;
  } catch (error) {
    if (made) await staged.discard();
    else await staged.release();
    throw staged.renamed(error);
  }
}

/** The reference's words where a format or the host cannot have a file of that size. */
export function sizeError(error: unknown, { driver, table }: CreateOptions): unknown {
  if (!(error instanceof ImageError) || error.context.errno !== 'EFBIG') return error;
  const remedy = table.some((option) => option.name === 'cluster_size')
    ? ' (try using a larger cluster size)'
    : '';
  return new ImageError(
    error.kind,
    `The image size is too large for file format '${driver.name}'${remedy}`,
    error.context,
    error,
  );
}
