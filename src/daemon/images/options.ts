/** QMP's option tree: checked as QAPI would, with its words, and brought to the flat form that images are opened from. */
import { ImageError } from '../../engine/error.js';
import { driverNames, loadDriver } from '../../engine/formats/index.js';
import { FlatOptions } from '../../engine/node/flat-options.js';
import { PROTOCOLS } from '../../engine/node/open-storage.js';
import type { OptionDeclaration } from '../../engine/node/option-table.js';
import { type BlockdevOptions, BlockPermission } from '../../protocol/commands/blockdev.js';

type Tree = Readonly<Record<string, unknown>>;

/** What each protocol takes beyond what all do; filters check their own. */
const FILE: Readonly<Record<string, string>> = {
  filename: 'string',
  locking: 'auto|on|off',
  aio: 'threads|native|io_uring',
  'aio-max-batch': 'integer',
  'drop-cache': 'boolean',
  'x-check-cache-dropped': 'boolean',
};
const NULL: Readonly<Record<string, string>> = {
  size: 'integer',
  'latency-ns': 'integer',
  'read-zeroes': 'boolean',
};
export const PROTOCOL_OPTIONS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  file: FILE,
  host_device: FILE,
  'null-co': NULL,
  'null-aio': NULL,
};

const GENERIC: Readonly<Record<string, string>> = {
  driver: 'string',
  'node-name': 'string',
  'read-only': 'boolean',
  'auto-read-only': 'boolean',
  'force-share': 'boolean',
  discard: 'ignore|unmap',
  'detect-zeroes': 'off|on|unmap',
};

const QAPI_TYPE: Readonly<Record<OptionDeclaration['type'], string>> = {
  string: 'string',
  bool: 'boolean',
  number: 'integer',
  size: 'integer',
};

/** Deeper trees are no images. */
const MAX_DEPTH = 32;

function invalid(message: string): ImageError {
  return new ImageError('invalid', message);
}

function isTree(value: unknown): value is Tree {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A value by its QAPI type: a JSON type, or words with bars between. */
function checkType(path: string, type: string, value: unknown): void {
  if (type.includes('|')) {
    if (typeof value !== 'string') throw invalid(`Invalid parameter type for '${path}', expected: string`);
    if (!type.split('|').includes(value)) {
      throw invalid(`Parameter '${path}' does not accept value '${value.slice(0, 64)}'`);
    }
    return;
  }
  if (type === 'integer') {
    if (typeof value !== 'number' || !Number.isInteger(value)) {
      throw invalid(`Invalid parameter type for '${path}', expected: integer`);
    }
    if (value < 0) throw invalid(`Value '${value}' is out of range for parameter '${path}'`);
    return;
  }
  if (typeof value !== type) throw invalid(`Invalid parameter type for '${path}', expected: ${type}`);
}

/** Checks one node and all below it. `prefix`: where it stands, with a dot at the end (`file.`). */
async function check(tree: Tree, prefix: string, rest: readonly string[], depth = 0): Promise<void> {
  if (depth > MAX_DEPTH) throw new ImageError('limit', 'Options are nested too deeply');
  const { driver } = tree;
  if (driver === undefined) throw invalid(`Parameter '${prefix}driver' is missing`);
  checkType(`${prefix}driver`, 'string', driver);
  const name = driver as string;
  if (!driverNames.includes(name) && !PROTOCOLS.has(name)) {
    throw invalid(`Parameter '${prefix}driver' does not accept value '${name.slice(0, 64)}'`);
  }
  const left = new Set(Object.keys(tree).filter((key) => tree[key] !== undefined && !rest.includes(key)));
  const take = (key: string, type: string): void => {
    if (left.delete(key)) checkType(prefix + key, type, tree[key]);
  };
  for (const [key, type] of Object.entries(GENERIC)) take(key, type);
  if (left.delete('cache')) {
    const { cache } = tree;
    if (!isTree(cache)) throw invalid(`Invalid parameter type for '${prefix}cache', expected: object`);
    for (const [key, value] of Object.entries(cache)) {
      if (key !== 'direct' && key !== 'no-flush')
        throw invalid(`Parameter '${prefix}cache.${key}' is unexpected`);
      checkType(`${prefix}cache.${key}`, 'boolean', value);
    }
  }
  if (tree['detect-zeroes'] === 'unmap' && tree.discard !== 'unmap') {
    throw invalid('setting detect-zeroes to unmap is not allowed without setting discard operation to unmap');
  }
  const children = async (names: readonly string[]): Promise<void> => {
    for (const child of names) {
      if (!left.delete(child)) continue;
      const value = tree[child];
      if (isTree(value)) await check(value, `${prefix}${child}.`, [], depth + 1);
      else if (typeof value !== 'string' && !(value === null && child === 'backing')) {
        const type = child === 'backing' ? 'BlockdevRefOrNull' : 'BlockdevRef';
        throw invalid(`Invalid parameter type for '${prefix}${child}', expected: ${type}`);
      }
    }
  };
  if (PROTOCOLS.has(name)) {
    const own = PROTOCOL_OPTIONS[name];
    if (name === 'throttle') {
      for (const key of ['throttle-group', 'file']) {
        if (tree[key] === undefined) throw invalid(`Parameter '${prefix}${key}' is missing`);
      }
      take('throttle-group', 'string');
      await children(['file']);
    } else if (own === undefined) {
      // A filter opens its children itself, and refuses what it does not know.
      return;
    }
    if (own !== undefined && 'filename' in own && tree.filename === undefined) {
      throw invalid(`Parameter '${prefix}filename' is missing`);
    }
    for (const [key, type] of Object.entries(own ?? {})) take(key, type);
  } else {
    if (tree.file === undefined) throw invalid(`Parameter '${prefix}file' is missing`);
    await children(['file', 'backing', 'data-file']);
    const { openOptions } = (await loadDriver(name))!;
    for (const { name: option, type } of openOptions) {
      const value = valueAt(tree, option);
      if (value === undefined) continue;
      checkType(prefix + option, QAPI_TYPE[type], value);
    }
    for (const key of [...left]) {
      const known = (path: string): boolean => openOptions.some((option) => option.name === path);
      const value = tree[key];
      if (known(key)) left.delete(key);
      else if (isTree(value) && openOptions.some((option) => option.name.startsWith(`${key}.`))) {
        for (const inner of Object.keys(value)) {
          if (!known(`${key}.${inner}`)) throw invalid(`Parameter '${prefix}${key}.${inner}' is unexpected`);
        }
        left.delete(key);
      }
    }
  }
  for (const key of left) throw invalid(`Parameter '${prefix}${key.slice(0, 64)}' is unexpected`);
}

/** `overlap-check.template` in a tree, where its parts may be nested or have the dot in their name. */
function valueAt(tree: Tree, path: string): unknown {
  if (path in tree) return isTree(tree[path]) ? undefined : tree[path];
  const dot = path.indexOf('.');
  if (dot < 0) return undefined;
  const inner = tree[path.slice(0, dot)];
  return isTree(inner) ? valueAt(inner, path.slice(dot + 1)) : undefined;
}

function flatten(tree: Tree, prefix: string, into: FlatOptions): void {
  for (const [key, value] of Object.entries(tree)) {
    if (value === undefined) continue;
    if (typeof value === 'object' && value !== null) flatten(value as Tree, `${prefix}${key}.`, into);
    else into.set(prefix + key, value as string | number | boolean | null);
  }
}

/** Checks the options of blockdev-add (`prefix` empty) or of one node of blockdev-reopen. Throws `invalid`. */
export async function checkOptions(tree: unknown, prefix = ''): Promise<Tree> {
  if (!isTree(tree)) throw invalid(`Invalid parameter type for '${prefix.slice(0, -1)}', expected: object`);
  await check(tree, prefix, ['cwd', 'share']);
  const { share } = tree;
  if (share !== undefined) {
    const known: readonly string[] = BlockPermission.options;
    if (!Array.isArray(share)) throw invalid("Invalid parameter type for 'share', expected: array");
    const strange = share.find((name) => !known.includes(name));
    if (strange !== undefined) throw invalid(`Parameter 'share' does not accept value '${String(strange)}'`);
  }
  return tree;
}

export function flat(tree: Tree): FlatOptions {
  const { cwd: _, share: __, ...options } = tree;
  const into = new FlatOptions();
  flatten(options, '', into);
  return into;
}

export type { BlockdevOptions, Tree };
