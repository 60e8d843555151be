/** Creating qcow2 images. */
import { ImageError } from '../../error.js';
import type { CreateContext } from '../../node/driver.js';
import type { OptionValues } from '../../node/option-table.js';
import type { Preallocation, Storage } from '../../storage/storage.js';
import { type Extension, encodeHeader, type Header } from './header.js';
import {
  Autoclear,
  Compatible,
  CompressionType,
  CryptMethod,
  ExtensionType,
  type Geometry,
  geometry,
  Incompatible,
  MAX_BACKING_NAME,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_ORDER,
  MIN_CLUSTER_BITS,
  MIN_EXTENDED_CLUSTER_BITS,
  refcountAccess,
  setRefcountTable,
  storeTable,
} from './layout.js';
import { openQcow2 } from './open.js';
import { DEFAULT_CLUSTER_SIZE, DEFAULT_REFCOUNT_BITS } from './options.js';
import { preallocate } from './preallocate.js';

const SECTOR = 512;

function invalid(message: string): ImageError {
  return new ImageError('invalid', message);
}

/** The options, checked, as what they mean for the image. */
interface Plan {
  readonly version: 2 | 3;
  readonly geometry: Geometry;
  readonly size: number;
  readonly preallocation: Preallocation;
  readonly zstd: boolean;
  readonly lazyRefcounts: boolean;
  readonly dataFile: string | undefined;
  readonly dataFileRaw: boolean;
  readonly backing: { readonly filename: string; readonly format?: string } | undefined;
}

function oneOf<T extends string>(
  options: OptionValues,
  name: string,
  qapi: string,
  allowed: readonly T[],
): T | undefined {
  const value = options[name];
  if (value === undefined) return undefined;
  const found = allowed.find((candidate) => candidate === value);
  if (found === undefined) throw invalid(`Parameter '${qapi}' does not accept value '${value}'`);
  return found;
}

/** Encryption is later work; what is wrong anyway is said as the reference says it. */
function refuseEncryption(options: OptionValues): void {
  const given = Object.keys(options).filter(
    (name) => name.startsWith('encrypt.') && options[name] !== undefined,
  );
  const format = options['encrypt.format'];
  const legacy = options.encryption;
  if (legacy !== undefined && format !== undefined) {
    throw invalid("'encrypt.format' and its alias 'encryption' can't be used at the same time");
  }
  if (legacy !== true && given.length === 0) return;
  if (legacy !== true && format === undefined) throw invalid("Parameter 'encrypt.format' is missing");
  if (options['encrypt.key-secret'] === undefined) {
    throw invalid("Parameter 'encrypt.key-secret' is required for cipher");
  }
  throw new ImageError('unsupported', 'Encrypted qcow2 images cannot be created so far');
}

/** Log2 of a power of two, or undefined. */
function exponent(value: number): number | undefined {
  const bits = Math.log2(value);
  return Number.isInteger(bits) ? bits : undefined;
}

function plan(context: CreateContext): Plan {
  const { options } = context;
  refuseEncryption(options);
  const compat = oneOf(options, 'compat', 'version', ['0.10', '1.1', 'v2', 'v3'] as const) ?? 'v3';
  const version = compat === '0.10' || compat === 'v2' ? 2 : 3;
  const preallocation =
    oneOf(options, 'preallocation', 'preallocation', ['off', 'metadata', 'falloc', 'full'] as const) ?? 'off';
  const zstd = oneOf(options, 'compression_type', 'compression-type', ['zlib', 'zstd'] as const) === 'zstd';

  const clusterBits = exponent((options.cluster_size as number | undefined) ?? DEFAULT_CLUSTER_SIZE);
  if (clusterBits === undefined || clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    throw invalid('Cluster size must be a power of two between 512 and 2048k');
  }
  const needsV3 = (what: string, verb = 'only supported') =>
    invalid(`${what} ${verb} with compatibility level 1.1 and above (use version=v3 or greater)`);
  const extendedL2 = options.extended_l2 === true;
  if (extendedL2) {
    if (clusterBits < MIN_EXTENDED_CLUSTER_BITS) {
      const least = 2 ** MIN_EXTENDED_CLUSTER_BITS;
      throw invalid(`Extended L2 entries are only supported with cluster sizes of at least ${least} bytes`);
    }
    if (version < 3) throw needsV3('Extended L2 entries are');
  }
  const backingName = context.backing?.filename ?? (options.backing_file as string | undefined);
  const backingFormat = context.backing?.format ?? (options.backing_fmt as string | undefined);
  if (preallocation !== 'off' && backingName !== undefined && !extendedL2) {
    throw invalid('Backing file and preallocation can only be used at the same time if extended_l2 is on');
  }
  if (backingFormat !== undefined && backingName === undefined) {
    throw invalid('Backing format cannot be used without backing file');
  }
  const lazyRefcounts = options.lazy_refcounts === true;
  if (lazyRefcounts && version < 3) throw needsV3('Lazy refcounts');
  const refcountBits = (options.refcount_bits as number | undefined) ?? DEFAULT_REFCOUNT_BITS;
  const refcountOrder = exponent(refcountBits);
  if (refcountOrder === undefined || refcountOrder < 0 || refcountOrder > MAX_REFCOUNT_ORDER) {
    throw invalid('Refcount width must be a power of two and may not exceed 64 bits');
  }
  if (refcountBits !== DEFAULT_REFCOUNT_BITS && version < 3) {
    throw invalid(
      'Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)',
    );
  }
  const dataFile = options.data_file as string | undefined;
  const dataFileRaw = options.data_file_raw === true;
  if (dataFileRaw && dataFile === undefined) throw invalid('data-file-raw requires data-file');
  if (dataFileRaw && backingName !== undefined) {
    throw invalid('Backing file and data-file-raw cannot be used at the same time');
  }
  if (dataFile !== undefined && version < 3) throw needsV3('External data files are');
  if (zstd && version < 3) throw needsV3('Non-zlib compression type is');

  const g = geometry({ clusterBits, refcountOrder, extendedL2, externalData: dataFile !== undefined });
  const size = roundSize(context.size);
  if (Math.ceil(size / g.l2Span) * 8 > MAX_L1_BYTES) {
    throw new ImageError(
      'limit',
      "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
    );
  }
  const backing =
    backingName === undefined
      ? undefined
      : { filename: backingName, ...(backingFormat === undefined ? {} : { format: backingFormat }) };
  return {
    version,
    geometry: g,
    size,
    // The data file can be read by itself only where every cluster is mapped.
    preallocation: dataFileRaw && preallocation === 'off' ? 'metadata' : preallocation,
    zstd,
    lazyRefcounts,
    dataFile,
    dataFileRaw,
    backing,
  };
}

/** Guest sizes are whole sectors. */
export function roundSize(size: number): number {
  return Math.ceil(size / SECTOR) * SECTOR;
}

function headerOf(p: Plan): Header {
  let incompatible = 0n;
  if (p.dataFile !== undefined) incompatible |= Incompatible.dataFile;
  if (p.zstd) incompatible |= Incompatible.compression;
  if (p.geometry.extendedL2) incompatible |= Incompatible.extendedL2;
  const extensions: Extension[] =
    p.dataFile === undefined
      ? []
      : [{ type: ExtensionType.dataFile, data: new TextEncoder().encode(p.dataFile) }];
  return {
    version: p.version,
    clusterBits: p.geometry.clusterBits,
    size: BigInt(p.size),
    cryptMethod: CryptMethod.none,
    l1Size: 0,
    l1TableOffset: 0n,
    refcountTableOffset: 0n,
    refcountTableClusters: 0,
    snapshotCount: 0,
    snapshotsOffset: 0n,
    incompatible,
    compatible: p.lazyRefcounts ? Compatible.lazyRefcounts : 0n,
    autoclear: p.dataFileRaw ? Autoclear.dataFileRaw : 0n,
    refcountOrder: p.geometry.refcountOrder,
    compressionType: p.zstd ? CompressionType.zstd : CompressionType.zlib,
    unknownFields: new Uint8Array(0),
    extensions,
    backing: p.backing,
  };
}

/** Header, refcount table, refcount blocks, L1 table, one after the other; the header last, so that it is true. */
async function writeEmpty(file: Storage, header: Header, g: Geometry): Promise<void> {
  const { clusterSize, refcountBlockEntries } = g;
  const l1Size = Math.ceil(Number(header.size) / g.l2Span);
  const l1Clusters = Math.ceil((l1Size * 8) / clusterSize);
  let tableClusters = 1;
  let blocks = 1;
  for (;;) {
    const total = 1 + tableClusters + blocks + l1Clusters;
    const wantedBlocks = Math.ceil(total / refcountBlockEntries);
    const wantedTable = Math.ceil((wantedBlocks * 8) / clusterSize);
    if (wantedBlocks <= blocks && wantedTable <= tableClusters) break;
    blocks = Math.max(blocks, wantedBlocks);
    tableClusters = Math.max(tableClusters, wantedTable);
  }
  const used = 1 + tableClusters + blocks + l1Clusters;
  const blocksAt = (1 + tableClusters) * clusterSize;
  const l1At = blocksAt + blocks * clusterSize;
  const end = l1At + l1Size * 8;
  header.l1Size = l1Size;
  header.l1TableOffset = l1Size === 0 ? 0n : BigInt(l1At);
  header.refcountTableOffset = BigInt(clusterSize);
  header.refcountTableClusters = tableClusters;
  // All of its cluster: what a header is made longer with later has its place on the host.
  const head = new Uint8Array(clusterSize);
  head.set(encodeHeader(header));

  await file.zero({ at: 0, length: end }, { unmap: true });
  const table = new Uint32Array((tableClusters * clusterSize) / 4);
  const access = refcountAccess(g.refcountOrder);
  for (let slot = 0; slot < blocks; slot++) {
    const at = blocksAt + slot * clusterSize;
    setRefcountTable(table, slot, at);
    const block = new Uint8Array(clusterSize);
    const count = Math.min(refcountBlockEntries, used - slot * refcountBlockEntries);
    for (let entry = 0; entry < count; entry++) access.set(block, entry, 1);
    await file.write(at, block);
  }
  await file.write(clusterSize, storeTable(table));
  await file.flush();
  await file.write(0, head);
  await file.flush();
}

function backingError(
  backing: NonNullable<Plan['backing']>,
  errno: 'ENOSPC' | 'EINVAL',
  cause?: unknown,
): ImageError {
  const text = errno === 'ENOSPC' ? 'No space left on device' : 'Invalid argument';
  const kind = errno === 'ENOSPC' ? 'no-space' : 'invalid';
  return new ImageError(
    kind,
    `Could not assign backing file '${backing.filename}' with format '${backing.format ?? ''}': ${text}`,
    { errno },
    cause,
  );
}

/** Writes a new image. Throws `invalid` for options that make no sense together, before anything is written. */
export async function createQcow2(context: CreateContext): Promise<void> {
  const p = plan(context);
  const header = headerOf(p);
  if (p.backing !== undefined) {
    if (new TextEncoder().encode(p.backing.filename).byteLength > MAX_BACKING_NAME) {
      throw backingError(p.backing, 'EINVAL');
    }
    try {
      encodeHeader(header);
    } catch (error) {
      throw backingError(p.backing, 'ENOSPC', error);
    }
  }
  const dataFile = p.dataFile === undefined ? undefined : await context.openExtra(p.dataFile);
  let opened = false;
  try {
    if (dataFile !== undefined) {
      await dataFile.truncate(0);
      if (p.preallocation === 'off') await dataFile.truncate(p.size);
    }
    await writeEmpty(context.file, header, p.geometry);
    if (p.preallocation === 'off' || p.size === 0) {
      await dataFile?.flush();
      return;
    }
    const node = await openQcow2({
      file: context.file,
      writable: true,
      options: {},
      forCheck: false,
      metadataOnly: false,
      openChild: async () => dataFile,
      warn: () => {},
    });
    opened = true;
    try {
      await preallocate(node.writeParts, 0, p.size, p.preallocation);
    } finally {
      await node.close();
    }
  } finally {
    if (!opened) await dataFile?.close();
  }
}
