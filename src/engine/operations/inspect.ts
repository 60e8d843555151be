/**
 * image-inspect: what is to be known of an image file before anybody uses it. The format's own code opens it, so that what is
 * found is what would happen; each further file that it asks for is noted, and not opened.
 */
import type {
  ImageInspectParams,
  ImageInspectResult,
  SafetyCheck,
} from '../../protocol/commands/image-inspect.js';
import { type ImageError, toImageError } from '../error.js';
import { type Claims, claimsOf } from '../node/claims.js';
import type { Extent, FormatInfo, FormatNode } from '../node/driver.js';
import { absolutePath, checkAllowed, confine } from '../node/gate.js';
import { openFile } from '../storage/file.js';
import { NullStorage } from '../storage/null.js';
import type { Storage } from '../storage/storage.js';
import type { OperationContext } from './context.js';
import { partitionTable, SECTOR } from './partition-table.js';

type Check = Omit<SafetyCheck, 'name'>;

/** In the order in which they are told. */
const NAMES: readonly SafetyCheck['name'][] = [
  'format',
  'header',
  'backing-file',
  'data-file',
  'extents',
  'features',
  'encryption',
  'size',
  'partition-table',
];

/** Skipped ones without which nothing is known to be safe. */
const VITAL: readonly SafetyCheck['name'][] = [
  'header',
  'backing-file',
  'data-file',
  'extents',
  'features',
  'size',
];

/** Of names that an image refers to, so many are told, and so much of each. */
const MAX_NAMES = 64;
const MAX_NAME = 4096;

/** As large as any: what is said of a file that is not opened must not be refused for its size. */
const UNOPENED_BYTES = 2 ** 52;

export async function inspect(
  params: ImageInspectParams,
  context: OperationContext,
): Promise<ImageInspectResult> {
  const { filename } = params;
  const path = absolutePath(filename, context.cwd);
  checkAllowed(path, filename, 'caller', context.policy);
  const confined = confine(filename, 'caller', context.policy);
  const file = await openFile({ path, filename, writable: false, confined, observer: context.trace });
  try {
    const claims = await claimsOf(file);
    const opened = await openAlone(file, claims);
    const checks = await check(params, file, claims, opened);
    const virtualSize = opened.node?.size;
    await opened.node?.close();
    const told = NAMES.map((name) => ({ name, ...checks[name] }));
    return {
      filename,
      format: claims.driver.name,
      ...(virtualSize === undefined ? {} : { 'virtual-size': virtualSize }),
      'file-size': file.size,
      safe: !told.some(
        ({ name, status }) => status === 'fail' || (status === 'skip' && VITAL.includes(name)),
      ),
      checks: told,
    };
  } finally {
    await file.close();
  }
}

interface Opened {
  readonly node: FormatNode | undefined;
  readonly error: ImageError | undefined;
  /** Files beside its own that it asks for, by the child's name. */
  readonly children: ReadonlyMap<string, string>;
}

async function openAlone(file: Storage, { driver }: Claims): Promise<Opened> {
  const children = new Map<string, string>();
  try {
    const node = await driver.open({
      file,
      writable: false,
      options: {},
      forCheck: false,
      metadataOnly: true,
      async openChild(child, recorded) {
        if (recorded === undefined) return undefined;
        if (children.size < MAX_NAMES) children.set(child, recorded.slice(0, MAX_NAME));
        return new NullStorage({
          filename: recorded,
          size: UNOPENED_BYTES,
          readZeroes: true,
          writable: false,
        });
      },
      warn: () => undefined,
      say: () => undefined,
    });
    return { node, error: undefined, children };
  } catch (error) {
    return { node: undefined, error: toImageError(error), children };
  }
}

async function check(
  params: ImageInspectParams,
  file: Storage,
  claims: Claims,
  { node, error, children }: Opened,
): Promise<Record<SafetyCheck['name'], Check>> {
  const unknown = (what: string): Check => ({ status: 'skip', text: `${what}: it could not be opened` });
  const known = (text: string): Check => (node === undefined ? unknown(text) : { status: 'pass', text });
  const refersTo = (what: string, names: readonly string[]): Check =>
    names.length === 0
      ? known(`no ${what}`)
      : { status: 'fail', text: `refers to other files as its ${what}`, names: [...names] };
  const info: FormatInfo = (await node?.info()) ?? {};
  const backing = node?.backing?.filename;
  const childNames = (wanted: boolean): string[] =>
    [...children].filter(([child]) => (child === 'data-file') === wanted).map(([, name]) => name);

  const checks: Record<SafetyCheck['name'], Check> = {
    format: formatCheck(params.format, claims),
    header: headerCheck(error, children.size > 0),
    'backing-file': refersTo('backing file', backing === undefined ? [] : [backing]),
    'data-file': refersTo('data file', childNames(true)),
    extents: refersTo('extents', childNames(false)),
    features: known('none that is not known'),
    encryption:
      info.encrypted === true || claims.names.includes('luks')
        ? { status: 'warn', text: 'encrypted: what is inside cannot be looked at' }
        : known('not encrypted'),
    size: node === undefined ? unknown('its size') : sizeCheck(node.size, params['max-size']),
    'partition-table': await partitions(node, file, info.encrypted === true),
  };
  // What the format finds by itself is closer to the truth, and is there although it does not open.
  for (const { check: name, status, text, names } of (await claims.driver.inspect?.(file)) ?? []) {
    checks[name] = { status, text, ...(names === undefined ? {} : { names: [...names] }) };
  }
  return checks;
}

function formatCheck(expected: string | undefined, { driver, unclaimed, names }: Claims): Check {
  if (names.length > 1) {
    return { status: 'fail', text: 'can be taken for several formats', names: [...names] };
  }
  if (expected !== undefined && expected !== driver.name) {
    return { status: 'fail', text: `is ${driver.name}, and was said to be ${expected.slice(0, 64)}` };
  }
  if (!unclaimed || expected === driver.name) return { status: 'pass', text: `is ${driver.name}` };
  const also = names.length === 0 ? '' : ` and has the signature of ${names[0]}`;
  return {
    status: 'warn',
    text: `nothing says what it is: taken for ${driver.name}${also}`,
    names: [...names],
  };
}

/** Where other files were asked for, an error may be about these, which were not there. */
function headerCheck(error: ImageError | undefined, asked: boolean): Check {
  if (error === undefined) return { status: 'pass', text: 'opens by itself' };
  if (asked) return { status: 'skip', text: 'does not open without the files that it refers to' };
  return { status: 'fail', text: error.message.slice(0, MAX_NAME) };
}

function sizeCheck(size: number, limit: number | undefined): Check {
  if (limit !== undefined && size > limit) {
    return { status: 'fail', text: `${size} bytes for the guest: more than ${limit}` };
  }
  return { status: 'pass', text: `${size} bytes for the guest` };
}

async function partitions(node: FormatNode | undefined, file: Storage, encrypted: boolean): Promise<Check> {
  if (node === undefined || encrypted) return { status: 'skip', text: 'the guest disk cannot be read' };
  try {
    const sectors = await guestStart(node, file);
    if (sectors !== undefined) return partitionTable(sectors, node.size);
    return { status: 'skip', text: 'the start of the guest disk is in another file' };
  } catch (error) {
    return {
      status: 'warn',
      text: `the guest disk cannot be read: ${toImageError(error).message.slice(0, 256)}`,
    };
  }
}

/** The guest's first two sectors; undefined where they are not in the file itself. */
async function guestStart(node: FormatNode, file: Storage): Promise<Buffer | undefined> {
  const sectors = Buffer.alloc(2 * SECTOR);
  const end = Math.min(sectors.length, node.size);
  for (let at = 0; at < end; ) {
    const extent: Extent = await node.map({ at, length: end - at });
    const part = sectors.subarray(at, at + extent.length);
    if (extent.kind === 'packed') await extent.read(part);
    else if (extent.kind === 'data') {
      if (extent.storage !== file) return undefined;
      await file.read(extent.at, part);
    } else if (extent.kind === 'backing' && node.backing !== undefined) return undefined;
    at += extent.length;
  }
  return sectors;
}
