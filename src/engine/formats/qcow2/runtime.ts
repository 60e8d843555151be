/** What the runtime options ask for: checked in the reference's order and words, and made into settings. */
import { ImageError } from '../../error.js';
import type { OptionValues } from '../../node/option-table.js';
import type { Header } from './header.js';
import { CryptMethod, type Geometry } from './layout.js';

/** Structures that writes are kept from, in the order in which the reference looks, by their options' names. */
export const STRUCTURES = [
  'main-header',
  'active-l1',
  'refcount-table',
  'snapshot-table',
  'inactive-l1',
  'bitmap-directory',
  'active-l2',
  'refcount-block',
  'inactive-l2',
] as const;
export type Structure = (typeof STRUCTURES)[number];

/** Whose place the header names, or what is always in memory. */
const CONSTANT: readonly Structure[] = ['main-header', 'active-l1', 'refcount-table', 'snapshot-table'];
const CACHED: readonly Structure[] = [
  ...CONSTANT,
  'bitmap-directory',
  'active-l2',
  'refcount-block',
  'inactive-l1',
];
const TEMPLATES = new Map<string, readonly Structure[]>([
  ['none', []],
  ['constant', [...CONSTANT, 'bitmap-directory']],
  ['cached', CACHED],
  ['all', STRUCTURES],
]);

/** What clusters were freed for. */
export const Freed = { request: 0, snapshot: 1, other: 2, bitmap: 3 } as const;
export type Freed = (typeof Freed)[keyof typeof Freed];

export interface Runtime {
  readonly overlapChecks: ReadonlySet<Structure>;
  /** By `Freed`: whether the host space of such clusters is given back. */
  readonly passDiscard: readonly [request: boolean, snapshot: boolean, other: boolean, bitmap: true];
  /** What the guest discards keeps its place in the file. */
  readonly discardNoUnref: boolean;
  /** Undefined: as much as is good. */
  readonly l2CacheBytes: number | undefined;
  readonly refcountCacheBytes: number | undefined;
}

/** The reference counts the tables of a cache in an int. */
const MAX_CACHED_TABLES = 0x7fff_ffff;
const MIN_REFCOUNT_TABLES = 4;
const MIN_L2_ENTRY = 512;
const MAX_CLEAN_INTERVAL = 0xffff_ffff;

function invalid(message: string): ImageError {
  return new ImageError('invalid', message);
}

/** Reads the options against the header, whose tables have been checked. */
export function readRuntime(options: OptionValues, header: Header, g: Geometry): Runtime {
  const caches = cacheSizes(options, header, g);
  if (((options['cache-clean-interval'] as number | undefined) ?? 0) > MAX_CLEAN_INTERVAL) {
    throw invalid('Cache clean interval too big');
  }
  // No other effect: counts are never behind here, so that there is nothing to postpone and no dirty bit to set.
  if (options['lazy-refcounts'] === true && header.version < 3) {
    throw invalid('Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level');
  }
  const overlapChecks = chosenStructures(options);
  const discardNoUnref = options['discard-no-unref'] === true;
  if (discardNoUnref && header.version < 3) {
    throw invalid('discard-no-unref is only supported since qcow2 version 3');
  }
  checkEncryptFormat(options['encrypt.format'] as string | undefined, header);
  return {
    overlapChecks,
    passDiscard: [
      options['pass-discard-request'] !== false,
      options['pass-discard-snapshot'] !== false,
      options['pass-discard-other'] === true,
      true,
    ],
    discardNoUnref,
    ...caches,
  };
}

/** The interval and the entries' size have no other effect: tables are cached whole, and for as long as there is room. */
function cacheSizes(
  options: OptionValues,
  header: Header,
  g: Geometry,
): Pick<Runtime, 'l2CacheBytes' | 'refcountCacheBytes'> {
  const both = options['cache-size'] as number | undefined;
  let l2 = options['l2-cache-size'] as number | undefined;
  let refcounts = options['refcount-cache-size'] as number | undefined;
  if (both !== undefined) {
    if (l2 !== undefined && refcounts !== undefined) {
      throw invalid('cache-size, l2-cache-size and refcount-cache-size may not be set at the same time');
    }
    if (l2 !== undefined && l2 > both) throw invalid('l2-cache-size may not exceed cache-size');
    if (refcounts !== undefined && refcounts > both)
      throw invalid('refcount-cache-size may not exceed cache-size');
    if (l2 !== undefined) refcounts = both - l2;
    else if (refcounts !== undefined) l2 = both - refcounts;
    else {
      const wanted = Math.ceil(Number(header.size) / g.l2Span) * g.clusterSize;
      const least = MIN_REFCOUNT_TABLES * g.clusterSize;
      l2 = both > least + wanted ? wanted : Math.max(0, both - least);
      refcounts = both - l2;
    }
  }
  const entry = options['l2-cache-entry-size'] as number | undefined;
  if (
    entry !== undefined &&
    (entry < MIN_L2_ENTRY || entry > g.clusterSize || !Number.isInteger(Math.log2(entry)))
  ) {
    throw invalid(
      `L2 cache entry size must be a power of two between 512 and the cluster size (${g.clusterSize})`,
    );
  }
  if (Math.floor((refcounts ?? 0) / g.clusterSize) > MAX_CACHED_TABLES)
    throw invalid('Refcount cache size too big');
  return { l2CacheBytes: l2, refcountCacheBytes: refcounts };
}

function chosenStructures(options: OptionValues): ReadonlySet<Structure> {
  const plain = options['overlap-check'] as string | undefined;
  const nested = options['overlap-check.template'] as string | undefined;
  if (plain !== undefined && nested !== undefined && plain !== nested) {
    throw invalid(
      `Conflicting values for qcow2 options 'overlap-check' ('${plain}') and 'overlap-check.template' ('${nested}')`,
    );
  }
  const name = plain ?? nested ?? 'cached';
  const template = TEMPLATES.get(name);
  if (template === undefined) {
    const allowed = [...TEMPLATES.keys()].join(', ');
    throw invalid(
      `Unsupported value '${name}' for qcow2 option 'overlap-check'. Allowed are any of the following: ${allowed}`,
    );
  }
  return new Set(
    STRUCTURES.filter(
      (each) => (options[`overlap-check.${each}`] as boolean | undefined) ?? template.includes(each),
    ),
  );
}

function checkEncryptFormat(wanted: string | undefined, header: Header): void {
  if (header.cryptMethod > CryptMethod.luks) {
    throw new ImageError('unsupported', `Unsupported encryption method ${header.cryptMethod | 0}`);
  }
  if (wanted === undefined) return;
  if (header.cryptMethod === CryptMethod.none) {
    throw invalid(`No encryption in image header, but options specified format '${wanted}'`);
  }
  const format = header.cryptMethod === CryptMethod.aes ? 'aes' : 'luks';
  if (wanted !== format) {
    throw invalid(`Header reported '${format}' encryption format but options specify '${wanted}'`);
  }
}
