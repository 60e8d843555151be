/** Opening: the header's claims are checked in the reference's order and words. */
import { errnoText, ImageError } from '../../error.js';
import type { OpenContext } from '../../node/driver.js';
import type { OptionDeclaration } from '../../node/option-table.js';
import { QcowImage } from './image.js';
import {
  CRYPT_AES,
  CRYPT_NONE,
  geometry,
  MAGIC,
  MAX_BACKING_NAME,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_L1_ENTRIES,
  MAX_L2_BITS,
  MAX_OFFSET,
  MIN_CLUSTER_BITS,
  MIN_L2_BITS,
  QcowHeader,
  SECTOR,
  VERSION,
} from './layout.js';

export const openOptions: readonly OptionDeclaration[] = [
  { name: 'encrypt.format', type: 'string', help: "Encryption format: 'aes'" },
  {
    name: 'encrypt.key-secret',
    type: 'string',
    help: 'ID of the secret that provides the AES encryption key',
  },
];

const UINT64_MAX = 2n ** 64n - 1n;

function bad(message: string): ImageError {
  return new ImageError('corrupt', message);
}

type Header = ReturnType<typeof QcowHeader.decode>;

function checkHeader(header: Header): void {
  if (header.magic !== MAGIC) throw bad('Image not in qcow format');
  if (header.version !== VERSION) {
    const hint = header.version === 2 || header.version === 3 ? "Try the 'qcow2' driver instead." : undefined;
    throw new ImageError(
      'unsupported',
      `qcow (v1) does not support qcow version ${header.version}`,
      hint === undefined ? {} : { hint },
    );
  }
  if (header.size <= 1n) throw bad('Image size is too small (must be at least 2 bytes)');
  const { clusterBits, l2Bits } = header;
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    throw bad('Cluster size must be between 512 and 64k');
  }
  if (l2Bits < MIN_L2_BITS || l2Bits > MAX_L2_BITS) throw bad('L2 table size must be between 512 and 64k');
  if (header.cryptMethod > CRYPT_AES) throw bad('invalid encryption method in qcow header');
}

function checkEncryption({ cryptMethod }: Header, context: OpenContext): void {
  const format = context.options['encrypt.format'] as string | undefined;
  const secret = context.options['encrypt.key-secret'];
  if (cryptMethod === CRYPT_NONE) {
    if (format === undefined) return;
    throw new ImageError(
      'invalid',
      `No encryption in image header, but options specified format '${format}'`,
    );
  }
  if (format !== undefined && format !== 'aes') {
    throw new ImageError(
      'invalid',
      `Header reported 'aes' encryption format but options specify '${format}'`,
    );
  }
  if (context.metadataOnly) return;
  if (secret === undefined) {
    throw new ImageError('invalid', "Parameter 'encrypt.key-secret' is required for cipher");
  }
  throw new ImageError(
    'unsupported',
    'Encrypted qcow images can only be described, not read or written, so far',
  );
}

async function readBackingName(context: OpenContext, header: Header): Promise<string | undefined> {
  const { backingFileOffset: at, backingFileSize: length } = header;
  if (at === 0n) return undefined;
  if (length > MAX_BACKING_NAME) throw bad('Backing file name too long');
  if (at > BigInt(Number.MAX_SAFE_INTEGER - MAX_BACKING_NAME)) throw unreadable(context);
  const name = Buffer.alloc(length);
  await context.file.read(Number(at), name);
  const end = name.indexOf(0);
  return name.toString('utf8', 0, end < 0 ? length : end) || undefined;
}

/** The reference names the image once more where only the host's code is known. */
function unreadable({ file }: OpenContext): ImageError {
  return new ImageError('corrupt', `Could not open '${file.filename}': ${errnoText('EIO')}`, {
    errno: 'EIO',
  });
}

export async function openImage(context: OpenContext): Promise<QcowImage> {
  const { file, writable } = context;
  const head = new Uint8Array(QcowHeader.size);
  await file.read(0, head);
  const header = QcowHeader.decode(head);
  checkHeader(header);
  checkEncryption(header, context);
  const span = 1n << BigInt(header.clusterBits + header.l2Bits);
  if (header.size > UINT64_MAX - span) throw bad('Image too large');
  const l1Entries = (header.size + span - 1n) / span;
  if (l1Entries > BigInt(MAX_L1_ENTRIES)) throw bad('Image too large');
  const l1Bytes = l1Entries * 8n;
  if (l1Bytes > BigInt(MAX_L1_BYTES) || header.l1TableOffset > MAX_OFFSET - l1Bytes)
    throw unreadable(context);
  if (
    header.size > BigInt(Number.MAX_SAFE_INTEGER) ||
    header.l1TableOffset + l1Bytes > BigInt(2 ** 53 - 2 ** 32)
  ) {
    throw new ImageError('limit', 'Image too large');
  }
  const size = Number(header.size);
  return new QcowImage({
    file,
    header,
    geometry: geometry(header.clusterBits, header.l2Bits, size),
    writable,
    size: size - (size % SECTOR),
    backingName: await readBackingName(context, header),
  });
}
