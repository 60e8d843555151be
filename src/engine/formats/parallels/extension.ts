/** The Format Extension: the dirty bitmaps that other programs keep in the image, read. */
import { createHash } from 'node:crypto';
import { ImageError } from '../../error.js';
import type { BitmapContent, BitmapFacet } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import type { ParallelsImage } from './image.js';
import {
  BitmapFeature,
  EXTENSION_MAGIC,
  ExtensionHeader,
  FEATURE_BITMAP,
  FEATURE_END,
  Feature,
  SECTOR,
} from './layout.js';

/** The cluster is hashed in pieces of this many bytes. */
const PIECE = 1024 * 1024;
/** So much of it may be missing at the end of the file, and counts as zeros. */
const MAX_MISSING = 64 * 1024 * 1024;

interface StoredBitmap {
  readonly name: string;
  /** Bytes a bit. */
  readonly granularity: number;
  readonly l1At: number;
  readonly l1Size: number;
}

function corrupt(message: string): ImageError {
  return new ImageError('corrupt', message);
}

const hex = (value: bigint) => `0x${value.toString(16)}`;

/** A UUID as text, its bytes in their order. */
function uuidText(id: Uint8Array): string {
  const digits = Buffer.from(id).toString('hex');
  return [
    [0, 8],
    [8, 12],
    [12, 16],
    [16, 20],
    [20, 32],
  ]
    .map(([a, b]) => digits.slice(a, b))
    .join('-');
}

async function checksum(file: Storage, at: number, length: number): Promise<Buffer> {
  const hash = createHash('md5');
  const piece = new Uint8Array(Math.min(PIECE, length));
  for (let done = 0; done < length; done += piece.length) {
    const part = piece.subarray(0, Math.min(piece.length, length - done));
    await file.read(at + done, part);
    hash.update(part);
  }
  return hash.digest();
}

async function readBitmap(
  image: ParallelsImage,
  at: number,
  dataSize: number,
  known: ReadonlyMap<string, StoredBitmap>,
): Promise<StoredBitmap> {
  const { file, clusterSize } = image;
  if (dataSize < BitmapFeature.size) {
    throw corrupt(
      `Too small Bitmap Feature area in Parallels Format Extension: ${dataSize} bytes, expected at least ${BitmapFeature.size} bytes`,
    );
  }
  const raw = new Uint8Array(BitmapFeature.size);
  await file.read(at, raw);
  const { size, id, granularity, l1Size } = BitmapFeature.decode(raw);
  const sectors = BigInt(image.size / SECTOR);
  if (size !== sectors) {
    throw corrupt(`Bitmap size (in sectors) ${size} differs from disk size in sectors ${sectors}`);
  }
  if (BitmapFeature.size + l1Size * 8 > dataSize) {
    throw corrupt('Bitmaps feature corrupted: l1 table exceeds extension data_size');
  }
  if (granularity === 0 || (granularity & (granularity - 1)) !== 0 || granularity >= 2 ** 31) {
    throw corrupt(`Bitmap granularity of ${granularity} sectors is no power of two`);
  }
  const name = uuidText(id);
  if (known.has(name)) throw corrupt(`Bitmap already exists: ${name}`);
  const bits = Math.ceil(image.size / (granularity * SECTOR));
  const expected = Math.ceil(Math.ceil(bits / 8) / clusterSize);
  if (l1Size !== expected) {
    throw corrupt(
      `Bitmap table size ${l1Size} does not correspond to bitmap size and cluster size. Expected ${expected}`,
    );
  }
  return { name, granularity: granularity * SECTOR, l1At: at + BitmapFeature.size, l1Size };
}

/** Reads the extension that the header points to. Throws `corrupt` in the reference's words. */
async function readExtension(image: ParallelsImage): Promise<Map<string, StoredBitmap>> {
  const { file, clusterSize, header } = image;
  const bitmaps = new Map<string, StoredBitmap>();
  const start = Number(header.extOff) * SECTOR;
  const end = start + clusterSize;
  const raw = new Uint8Array(ExtensionHeader.size);
  // Where no file reaches, files read as zeros.
  if (end <= Number.MAX_SAFE_INTEGER) await file.read(start, raw);
  const { magic, checksum: expected } = ExtensionHeader.decode(raw);
  if (magic !== EXTENSION_MAGIC) {
    throw corrupt(`Wrong parallels Format Extension magic: ${hex(magic)}, expected: ${hex(EXTENSION_MAGIC)}`);
  }
  let at = start + ExtensionHeader.size;
  if (end - file.size > MAX_MISSING || !(await checksum(file, at, end - at)).equals(expected)) {
    throw corrupt('Wrong checksum in Format Extension header. Format extension is corrupted.');
  }
  for (;;) {
    if (end - at < Feature.size) {
      throw corrupt(
        `Can not read feature header, as remaining bytes (${end - at}) in Format Extension is less than Feature header size (${Feature.size})`,
      );
    }
    const head = new Uint8Array(Feature.size);
    await file.read(at, head);
    const feature = Feature.decode(head);
    at += Feature.size;
    if (feature.flags !== 0n) throw corrupt('Flags for extension feature are unsupported');
    if (feature.dataSize > end - at) throw corrupt('Feature data_size exceedes Format Extension cluster');
    if (feature.magic === FEATURE_END) return bitmaps;
    if (feature.magic !== FEATURE_BITMAP) throw corrupt(`Unknown feature: ${hex(feature.magic)}`);
    const bitmap = await readBitmap(image, at, feature.dataSize, bitmaps);
    bitmaps.set(bitmap.name, bitmap);
    at = Math.min(end, at + Math.ceil(feature.dataSize / 8) * 8);
  }
}

/** Runs of dirty guest bytes, from the stored bits; at most a piece of the bitmap is held. */
async function contentOf(image: ParallelsImage, bitmap: StoredBitmap): Promise<BitmapContent> {
  const { file, clusterSize, size } = image;
  const { granularity, l1At, l1Size } = bitmap;
  const runs: [number, number][] = [];
  const mark = (from: number, to: number) => {
    const last = runs.at(-1);
    if (last !== undefined && last[1] === from) last[1] = to;
    else runs.push([from, to]);
  };
  const span = clusterSize * 8 * granularity;
  const entry = new Uint8Array(8);
  for (let index = 0; index < l1Size; index++) {
    await file.read(l1At + index * 8, entry);
    const value = new DataView(entry.buffer).getBigUint64(0, true);
    const base = index * span;
    if (value === 0n) continue;
    if (value === 1n) {
      mark(base, Math.min(base + span, size));
      continue;
    }
    if (value * BigInt(SECTOR) > BigInt(Number.MAX_SAFE_INTEGER - clusterSize)) {
      throw corrupt('Invalid image: Too big offset');
    }
    const place = Number(value) * SECTOR;
    const bytes = Math.min(clusterSize, Math.ceil((size - base) / granularity / 8));
    // Nothing is dirty where the file has ended.
    const stored = Math.min(bytes, Math.max(0, file.size - place));
    for (let done = 0; done < stored; done += PIECE) {
      const piece = new Uint8Array(Math.min(PIECE, stored - done));
      await file.read(place + done, piece);
      for (let i = 0; i < piece.length; i++) {
        const byte = piece[i]!;
        if (byte === 0) continue;
        for (let bit = 0; bit < 8; bit++) {
          if ((byte & (1 << bit)) === 0) continue;
          const from = base + ((done + i) * 8 + bit) * granularity;
          if (from < size) mark(from, Math.min(from + granularity, size));
        }
      }
    }
  }
  return { size, runs: () => runs };
}

/** Reads the extension, where the image has one. */
export async function readBitmaps(image: ParallelsImage): Promise<BitmapFacet> {
  const bitmaps = image.header.extOff === 0n ? new Map<string, StoredBitmap>() : await readExtension(image);
  const refused = () =>
    Promise.reject(
      new ImageError(
        'unsupported',
        `Can't store persistent bitmaps to ${image.file.filename}: Operation not supported`,
      ),
    );
  const find = (name: string) => {
    const bitmap = bitmaps.get(name);
    if (bitmap === undefined) throw new ImageError('invalid', `Dirty bitmap '${name}' not found`);
    return bitmap;
  };
  const known = async (name: string) => {
    find(name);
    return refused();
  };
  return {
    // They can be merged into others by name; the reference does not tell them, nor copy them with an image.
    list: () => [],
    add: refused,
    remove: known,
    clear: known,
    setEnabled: known,
    merge: known,
    content: async (name) => contentOf(image, find(name)),
    counts: async () => new Map(),
  };
}
