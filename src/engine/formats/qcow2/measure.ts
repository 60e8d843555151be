/** How large a qcow2 file will be, known before it is made. Sizes of up to 2^63 bytes are asked for: bigint throughout. */
import { ImageError } from '../../error.js';
import type { BitmapInfo, Measure, MeasureSpec } from '../../node/driver.js';
import type { OptionValues } from '../../node/option-table.js';
import {
  BitmapEntry,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_ORDER,
  MIN_CLUSTER_BITS,
  MIN_EXTENDED_CLUSTER_BITS,
} from './layout.js';
import { DEFAULT_CLUSTER_SIZE, DEFAULT_REFCOUNT_BITS } from './options.js';

/** An entry of the L1 table, the refcount table or a bitmap table, in bytes. */
const ENTRY = 8n;

function invalid(message: string): ImageError {
  return new ImageError('invalid', message);
}

function divideUp(a: bigint, b: bigint): bigint {
  return (a + b - 1n) / b;
}
function roundUp(a: bigint, b: bigint): bigint {
  return divideUp(a, b) * b;
}
function isExponent(value: number, most: number): boolean {
  return value >= 1 && value <= 2 ** most && Number.isInteger(Math.log2(value));
}

interface Shape {
  readonly clusterSize: bigint;
  readonly l2EntryBytes: bigint;
  readonly refcountBits: bigint;
  readonly version: 2 | 3;
  readonly allocates: boolean;
  readonly backed: boolean;
}

/** What the options say of the file's shape. The reference takes fewer words here than where it creates, and looks at less. */
function shapeOf(options: OptionValues): Shape {
  const clusterSize = (options.cluster_size as number | undefined) ?? DEFAULT_CLUSTER_SIZE;
  if (clusterSize < 2 ** MIN_CLUSTER_BITS || !isExponent(clusterSize, MAX_CLUSTER_BITS)) {
    throw invalid('Cluster size must be a power of two between 512 and 2048k');
  }
  const extendedL2 = options.extended_l2 === true;
  const least = 2 ** MIN_EXTENDED_CLUSTER_BITS;
  if (extendedL2 && clusterSize < least) {
    throw invalid(`Extended L2 entries are only supported with cluster sizes of at least ${least} bytes`);
  }
  const preallocation = (options.preallocation as string | undefined) ?? 'off';
  if (!['off', 'metadata', 'falloc', 'full'].includes(preallocation)) {
    throw invalid(`invalid parameter value: ${preallocation}`);
  }
  const compat = (options.compat as string | undefined) ?? '1.1';
  if (compat !== '0.10' && compat !== '1.1') throw invalid(`Invalid compatibility level: '${compat}'`);
  const version = compat === '0.10' ? 2 : 3;
  const refcountBits = (options.refcount_bits as number | undefined) ?? DEFAULT_REFCOUNT_BITS;
  if (!isExponent(refcountBits, MAX_REFCOUNT_ORDER)) {
    throw invalid('Refcount width must be a power of two and may not exceed 64 bits');
  }
  if (version < 3 && refcountBits !== DEFAULT_REFCOUNT_BITS) {
    throw invalid(
      'Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)',
    );
  }
  if (options['encrypt.format'] === 'luks') {
    if (options['encrypt.key-secret'] === undefined) {
      throw invalid("Parameter 'encrypt.key-secret' is required for cipher");
    }
    throw new ImageError('unsupported', 'Encrypted qcow2 images cannot be measured so far');
  }
  return {
    clusterSize: BigInt(clusterSize),
    l2EntryBytes: extendedL2 ? 16n : 8n,
    refcountBits: BigInt(refcountBits),
    version,
    allocates: preallocation === 'falloc' || preallocation === 'full',
    backed: options.backing_file !== undefined,
  };
}

/** Bytes of header, tables and refcounts where every guest cluster has a place. `size` is a multiple of the cluster size. */
function metadataBytes(size: bigint, { clusterSize, l2EntryBytes, refcountBits }: Shape): bigint {
  const l2Tables = divideUp((size / clusterSize) * l2EntryBytes, clusterSize);
  const l1Clusters = divideUp(l2Tables * ENTRY, clusterSize);
  const counted = 1n + l2Tables + l1Clusters + size / clusterSize;
  // Refcount blocks count themselves and their table too: more of them until they suffice.
  const perBlock = (clusterSize * 8n) / refcountBits;
  let blocks = 0n;
  let table = 0n;
  for (;;) {
    const more = divideUp(counted + blocks + table, perBlock);
    const longer = divideUp(more * ENTRY, clusterSize);
    if (more === blocks && longer === table) break;
    blocks = more;
    table = longer;
  }
  return (1n + l2Tables + l1Clusters + blocks + table) * clusterSize;
}

/** Bytes of the source's bitmaps, all of their bits stored, where they are copied. Inconsistent ones are not. */
function bitmapBytes(bitmaps: readonly BitmapInfo[], size: bigint, clusterSize: bigint): bigint {
  let bytes = 0n;
  let directory = 0;
  for (const { name, granularity, flags } of bitmaps) {
    if (flags.includes('in-use')) continue;
    const clusters = divideUp(divideUp(divideUp(size, BigInt(granularity)), 8n), clusterSize);
    bytes += clusters * clusterSize + roundUp(clusters * ENTRY, clusterSize);
    directory += Math.ceil((BitmapEntry.size + Buffer.byteLength(name)) / 8) * 8;
  }
  return bytes + roundUp(BigInt(directory), clusterSize);
}

/** Throws `invalid` for options that make no sense, `limit` for a size that no L1 table can map. */
export async function measureQcow2({ options, size, source }: MeasureSpec): Promise<Measure> {
  const shape = shapeOf(options);
  const { clusterSize } = shape;
  const guest = roundUp(size, clusterSize);
  const l2Tables = divideUp(guest / clusterSize, clusterSize / shape.l2EntryBytes);
  if (l2Tables * ENTRY > BigInt(MAX_L1_BYTES)) {
    throw new ImageError('limit', 'The image size is too large (try using a larger cluster size)');
  }
  const metadata = metadataBytes(guest, shape);
  let data = 0n;
  if (shape.allocates) data = guest;
  else if (source !== undefined) {
    // How much the source shares with the backing file is not known: nothing, at worst.
    data = shape.backed ? guest : await source.dataBytes(Number(clusterSize));
  }
  // All metadata is counted, used or not: the answer is never too small.
  const measured = { required: metadata + data, fullyAllocated: metadata + guest };
  if (shape.version < 3 || source?.bitmaps === undefined) return measured;
  return { ...measured, bitmaps: bitmapBytes(source.bitmaps, size, clusterSize) };
}
