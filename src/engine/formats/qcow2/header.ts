/** The qcow2 header and its extensions: bytes to fields and back, and what is checked of them by themselves. */
import { ImageError } from '../../error.js';
import type { BackingReference } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import {
  Compatible,
  ExtensionHeader,
  ExtensionType,
  FeatureName,
  FeatureSet,
  FULL_HEADER_LENGTH,
  HeaderExtra,
  HeaderV2,
  HeaderV3,
  Incompatible,
  KNOWN_INCOMPATIBLE,
  MAGIC,
  MAX_BACKING_NAME,
  MAX_CLUSTER_BITS,
  MIN_CLUSTER_BITS,
  V2_HEADER_LENGTH,
  V3_HEADER_LENGTH,
} from './layout.js';

export interface Extension {
  readonly type: number;
  readonly data: Uint8Array;
}

/** The header as fields. Offsets and the size are still 64-bit values from disk: whoever uses them checks them. */
export interface Header {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  size: bigint;
  cryptMethod: number;
  l1Size: number;
  l1TableOffset: bigint;
  refcountTableOffset: bigint;
  refcountTableClusters: number;
  snapshotCount: number;
  snapshotsOffset: bigint;
  incompatible: bigint;
  compatible: bigint;
  autoclear: bigint;
  readonly refcountOrder: number;
  readonly compressionType: number;
  /** Header bytes behind the fields known here: kept as they are. */
  readonly unknownFields: Uint8Array;
  /** In file order, without the end marker. */
  extensions: Extension[];
  backing: BackingReference | undefined;
}

/** Most images have their whole header in this; a longer one is read in a second go. */
const FIRST_READ = 4096;
/** The reference writes the feature name table into clusters of this size and above. */
const MIN_NAMES_CLUSTER = 8192;
/** QEMU keeps the backing format in 16 bytes with a NUL. */
const MAX_BACKING_FORMAT = 15;

const text = new TextDecoder();
const toBytes = new TextEncoder();

function bad(message: string): ImageError {
  return new ImageError('corrupt', message);
}

/** Whether these are the first bytes of a qcow2 image, of a version that this or a later program can read. */
export function isQcow2(head: Uint8Array): boolean {
  if (head.byteLength < 8) return false;
  const view = new DataView(head.buffer, head.byteOffset, 8);
  return view.getUint32(0) === MAGIC && view.getUint32(4) >= 2;
}

/** Reads and checks the header. Throws `corrupt`, or `unsupported` for versions and features from the future. */
export async function readHeader(file: Storage): Promise<Header> {
  const first = new Uint8Array(FIRST_READ);
  await file.read(0, first);
  const v2 = HeaderV2.decode(first);
  if (v2.magic !== MAGIC) throw new ImageError('invalid', 'Image is not in qcow2 format');
  if (v2.version !== 2 && v2.version !== 3) {
    throw new ImageError('unsupported', `Unsupported qcow2 version ${v2.version}`);
  }
  const { clusterBits } = v2;
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    throw new ImageError('unsupported', `Unsupported cluster size: 2^${clusterBits}`);
  }
  const clusterSize = 2 ** clusterBits;

  const isV3 = v2.version === 3;
  const v3 = isV3
    ? HeaderV3.decode(first, V2_HEADER_LENGTH)
    : { incompatible: 0n, compatible: 0n, autoclear: 0n, refcountOrder: 4, headerLength: V2_HEADER_LENGTH };
  const { headerLength } = v3;
  if (isV3 && headerLength < V3_HEADER_LENGTH) throw bad('qcow2 header too short');
  if (headerLength > clusterSize) throw bad('qcow2 header exceeds cluster size');
  const compressionType =
    headerLength > V3_HEADER_LENGTH ? HeaderExtra.decode(first, V3_HEADER_LENGTH).compressionType : 0;
  if (v2.backingFileOffset > BigInt(clusterSize)) throw bad('Invalid backing file offset');
  const backingOffset = Number(v2.backingFileOffset);

  // Extensions end where the backing file name begins; nothing of the header is outside of the first cluster.
  const end = backingOffset === 0 ? clusterSize : backingOffset;
  let head = first;
  let found = parseExtensions(head, headerLength, end);
  const nameEnd = backingOffset + Math.min(v2.backingFileSize, MAX_BACKING_NAME);
  if (clusterSize > FIRST_READ && (found === 'more' || headerLength > FIRST_READ || nameEnd > FIRST_READ)) {
    head = new Uint8Array(clusterSize);
    await file.read(0, head);
    found = parseExtensions(head, headerLength, end);
  }

  checkCompression(v3.incompatible, compressionType);
  const unknown = v3.incompatible & ~KNOWN_INCOMPATIBLE;
  if (unknown !== 0n) {
    const table =
      typeof found === 'string' ? undefined : found.find((e) => e.type === ExtensionType.featureNames);
    throw new ImageError(
      'unsupported',
      `Unsupported qcow2 feature(s): ${featureNames(unknown, table?.data)}`,
    );
  }
  if (typeof found === 'string') throw bad('Header extension too large');

  return {
    version: v2.version,
    clusterBits,
    size: v2.size,
    cryptMethod: v2.cryptMethod,
    l1Size: v2.l1Size,
    l1TableOffset: v2.l1TableOffset,
    refcountTableOffset: v2.refcountTableOffset,
    refcountTableClusters: v2.refcountTableClusters,
    snapshotCount: v2.snapshotCount,
    snapshotsOffset: v2.snapshotsOffset,
    incompatible: v3.incompatible,
    compatible: v3.compatible,
    autoclear: v3.autoclear,
    refcountOrder: v3.refcountOrder,
    compressionType,
    unknownFields: new Uint8Array(head.subarray(Math.min(FULL_HEADER_LENGTH, headerLength), headerLength)),
    extensions: found,
    backing: readBacking(head, backingOffset, v2.backingFileSize, clusterSize, found),
  };
}

/** `more`: one reaches over the bytes at hand; `too-large`: one reaches over `end`. */
function parseExtensions(head: Uint8Array, start: number, end: number): Extension[] | 'more' | 'too-large' {
  const found: Extension[] = [];
  for (let at = start; at < end; ) {
    if (at + ExtensionHeader.size > head.byteLength) {
      return head.byteLength < end ? 'more' : found;
    }
    const { type, length } = ExtensionHeader.decode(head, at);
    at += ExtensionHeader.size;
    // the end marker's length is looked at, too
    if (at > end || length > end - at) return 'too-large';
    if (type === ExtensionType.end) break;
    if (at + length > head.byteLength) return 'more';
    found.push({ type, data: new Uint8Array(head.subarray(at, at + length)) });
    at += Math.ceil(length / 8) * 8;
  }
  return found;
}

function checkCompression(incompatible: bigint, type: number): void {
  const bit = (incompatible & Incompatible.compression) !== 0n;
  if (type > 1) throw new ImageError('unsupported', `qcow2: unknown compression type: ${type}`);
  if (type === 0 && bit) throw bad('qcow2: Compression type incompatible feature bit must not be set');
  if (type !== 0 && !bit) throw bad('qcow2: Compression type incompatible feature bit must be set');
}

/** The names that the image itself gives for its unknown features; the bits in hexadecimal where it gives none. */
function featureNames(unknown: bigint, table: Uint8Array | undefined): string {
  let rest = unknown;
  const names: string[] = [];
  for (let at = 0; table !== undefined && at + FeatureName.size <= table.byteLength; at += FeatureName.size) {
    const { type, bit, name } = FeatureName.decode(table, at);
    if (type !== FeatureSet.incompatible || bit > 63 || (rest & (1n << BigInt(bit))) === 0n) continue;
    const end = name.indexOf(0);
    names.push(text.decode(end < 0 ? name : name.subarray(0, end)));
    rest &= ~(1n << BigInt(bit));
  }
  if (rest !== 0n) names.push(`Unknown incompatible feature: ${rest.toString(16)}`);
  return names.join(', ');
}

function readBacking(
  head: Uint8Array,
  offset: number,
  length: number,
  clusterSize: number,
  extensions: readonly Extension[],
): BackingReference | undefined {
  // Of several the last counts.
  const stored = extensions.filter((e) => e.type === ExtensionType.backingFormat).at(-1)?.data;
  if (stored !== undefined && stored.byteLength > MAX_BACKING_FORMAT) {
    throw bad(`ERROR: ext_backing_format: len=${stored.byteLength} too large (>=${MAX_BACKING_FORMAT + 1})`);
  }
  if (offset === 0) return undefined;
  if (length > Math.min(MAX_BACKING_NAME, clusterSize - offset)) throw bad('Backing file name too long');
  if (length === 0) return undefined;
  const filename = cString(head.subarray(offset, offset + length));
  if (filename === '') return undefined;
  const format = stored === undefined ? '' : cString(stored);
  return format === '' ? { filename } : { filename, format };
}

/** Text up to the first NUL, as the reference takes it. */
export function cString(stored: Uint8Array): string {
  const end = stored.indexOf(0);
  return text.decode(end < 0 ? stored : stored.subarray(0, end));
}

export function extension(header: Header, type: number): Uint8Array | undefined {
  return header.extensions.find((e) => e.type === type)?.data;
}

/** The table by which older programs can name the features they do not know, as the reference writes it. */
function featureNameTable(): Uint8Array {
  const { incompatible, compatible, autoclear } = FeatureSet;
  const names: readonly (readonly [number, number, string])[] = [
    [incompatible, 0, 'dirty bit'],
    [incompatible, 1, 'corrupt bit'],
    [incompatible, 2, 'external data file'],
    [incompatible, 3, 'compression type'],
    [incompatible, 4, 'extended L2 entries'],
    [compatible, 0, 'lazy refcounts'],
    [autoclear, 0, 'bitmaps'],
    [autoclear, 1, 'raw external data'],
  ];
  const table = new Uint8Array(names.length * FeatureName.size);
  names.forEach(([type, bit, name], index) => {
    FeatureName.encodeInto({ type, bit, name: toBytes.encode(name) }, table, index * FeatureName.size);
  });
  return table;
}

/**
 * The first bytes of the image: header, extensions, backing file name. Known extensions come in the reference's order,
 * unknown ones after them. Throws `no-space` where a cluster does not hold it all.
 */
export function encodeHeader(header: Header): Uint8Array {
  const clusterSize = 2 ** header.clusterBits;
  const isV3 = header.version === 3;
  const name = toBytes.encode(header.backing?.filename ?? '');
  const rebuilt: readonly number[] = [ExtensionType.backingFormat, ExtensionType.featureNames];
  const order: readonly number[] = [ExtensionType.dataFile, ExtensionType.cryptoHeader];
  const kept = header.extensions.filter((e) => !rebuilt.includes(e.type) && !order.includes(e.type));
  const format = header.backing?.format;
  const before: Extension[] = [
    ...(format === undefined ? [] : [{ type: ExtensionType.backingFormat, data: toBytes.encode(format) }]),
    ...order.flatMap((type) => header.extensions.filter((e) => e.type === type)),
  ];
  const names: Extension[] = isV3 ? [{ type: ExtensionType.featureNames, data: featureNameTable() }] : [];

  const fixed = isV3 ? FULL_HEADER_LENGTH + header.unknownFields.byteLength : V2_HEADER_LENGTH;
  const sizeOf = (list: readonly Extension[]) =>
    list.reduce((sum, e) => sum + ExtensionHeader.size + Math.ceil(e.data.byteLength / 8) * 8, 0);
  const needed = fixed + sizeOf(before) + sizeOf(kept) + ExtensionHeader.size + name.byteLength;
  if (needed > clusterSize) {
    throw new ImageError('no-space', 'No space left on device', { errno: 'ENOSPC' });
  }
  // The names are a courtesy: small clusters keep their room for what is needed, as the reference has it.
  const room = clusterSize >= MIN_NAMES_CLUSTER && needed + sizeOf(names) <= clusterSize;
  const extensions = [...before, ...(room ? names : []), ...kept];
  const total = fixed + sizeOf(extensions) + ExtensionHeader.size;

  const out = new Uint8Array(total + name.byteLength);
  HeaderV2.encodeInto(
    {
      magic: MAGIC,
      version: header.version,
      backingFileOffset: name.byteLength > 0 ? BigInt(total) : 0n,
      backingFileSize: name.byteLength,
      clusterBits: header.clusterBits,
      size: header.size,
      cryptMethod: header.cryptMethod,
      l1Size: header.l1Size,
      l1TableOffset: header.l1TableOffset,
      refcountTableOffset: header.refcountTableOffset,
      refcountTableClusters: header.refcountTableClusters,
      snapshotCount: header.snapshotCount,
      snapshotsOffset: header.snapshotsOffset,
    },
    out,
  );
  if (isV3) {
    const { incompatible, compatible, autoclear, refcountOrder, compressionType } = header;
    const fields = { incompatible, compatible, autoclear, refcountOrder, headerLength: fixed };
    HeaderV3.encodeInto(fields, out, V2_HEADER_LENGTH);
    HeaderExtra.encodeInto({ compressionType }, out, V3_HEADER_LENGTH);
    out.set(header.unknownFields, FULL_HEADER_LENGTH);
  }
  let at = fixed;
  for (const { type, data } of extensions) {
    ExtensionHeader.encodeInto({ type, length: data.byteLength }, out, at);
    out.set(data, at + ExtensionHeader.size);
    at += ExtensionHeader.size + Math.ceil(data.byteLength / 8) * 8;
  }
  out.set(name, total);
  return out;
}

export function hasFeature(header: Header, bit: keyof typeof Incompatible): boolean {
  return (header.incompatible & Incompatible[bit]) !== 0n;
}

export function isLazy(header: Header): boolean {
  return (header.compatible & Compatible.lazyRefcounts) !== 0n;
}
