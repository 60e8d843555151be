/** Creating qcow images. */
import { ImageError } from '../../error.js';
import type { CreateContext } from '../../node/driver.js';
import type { OptionDeclaration, OptionValues } from '../../node/option-table.js';
import {
  CRYPT_NONE,
  ENTRY_BYTES,
  geometry,
  MAGIC,
  MAX_BACKING_NAME,
  MAX_L1_BYTES,
  QcowHeader,
  SECTOR,
  VERSION,
} from './layout.js';

export const createOptions: readonly OptionDeclaration[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  { name: 'backing_file', type: 'string', help: 'File name of a base image' },
  { name: 'backing_fmt', type: 'string', help: 'Format of the backing image' },
  {
    name: 'encryption',
    type: 'bool',
    help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  { name: 'encrypt.format', type: 'string', help: "Encrypt the image, format choices: 'aes'" },
  {
    name: 'encrypt.key-secret',
    type: 'string',
    help: 'ID of the secret that provides the AES encryption key',
  },
];

export function roundSize(size: number): number {
  return Math.ceil(size / SECTOR) * SECTOR;
}

function invalid(message: string): ImageError {
  return new ImageError('invalid', message);
}

/** Encryption is later work; what is wrong anyway is said as the reference says it. */
function refuseEncryption(options: OptionValues): void {
  const legacy = options.encryption;
  const format = options['encrypt.format'];
  const secret = options['encrypt.key-secret'];
  if (legacy !== undefined && format !== undefined) {
    throw invalid("'encrypt.format' and its alias 'encryption' can't be used at the same time");
  }
  if (legacy !== true && format === undefined) {
    if (secret !== undefined) throw invalid("Parameter 'encrypt.format' is missing");
    return;
  }
  if (format !== undefined && format !== 'aes') {
    throw invalid(
      format === 'luks'
        ? 'Unsupported encryption format'
        : `Parameter 'format' does not accept value '${format}'`,
    );
  }
  if (secret === undefined) throw invalid("Parameter 'encrypt.key-secret' is required for cipher");
  throw new ImageError('unsupported', 'Encrypted qcow images cannot be created so far');
}

type Wanted = Pick<CreateContext, 'options' | 'backing' | 'size'>;

/** What the options mean for the image. Throws for what cannot be. */
function plan(context: Wanted) {
  const { options } = context;
  const size = roundSize(context.size);
  if (size === 0) throw invalid('Image size is too small, cannot be zero length');
  refuseEncryption(options);
  const filename = context.backing?.filename ?? (options.backing_file as string | undefined);
  const name = Buffer.from(filename ?? '', 'utf8');
  if (name.byteLength > MAX_BACKING_NAME) throw invalid('Backing file name too long');
  // Over a backing file, clusters of a sector: nothing has to be copied that is not written.
  const [clusterBits, l2Bits] = filename === undefined ? ([12, 9] as const) : ([9, 12] as const);
  const { l1Entries } = geometry(clusterBits, l2Bits, size);
  if (l1Entries * ENTRY_BYTES > MAX_L1_BYTES) {
    // The reference makes images that it cannot open again.
    throw new ImageError('limit', 'File too large', { errno: 'EFBIG' });
  }
  return { size, filename, name, clusterBits, l2Bits, l1Entries };
}

export function checkCreate(context: Wanted): void {
  plan(context);
}

/** Writes a new image, the header last. Throws before anything is written for what cannot be. */
export async function createQcow(context: CreateContext): Promise<void> {
  const { size, filename, name, clusterBits, l2Bits, l1Entries } = plan(context);
  const { file } = context;
  const l1At = Math.ceil((QcowHeader.size + name.byteLength) / 8) * 8;
  const header = QcowHeader.encode({
    magic: MAGIC,
    version: VERSION,
    backingFileOffset: filename === undefined ? 0n : BigInt(QcowHeader.size),
    backingFileSize: name.byteLength,
    size: BigInt(size),
    clusterBits,
    l2Bits,
    cryptMethod: CRYPT_NONE,
    l1TableOffset: BigInt(l1At),
  });
  await file.truncate(0);
  // The L1 table, in whole sectors from where it begins: zeros.
  await file.truncate(l1At + Math.ceil((l1Entries * ENTRY_BYTES) / SECTOR) * SECTOR);
  await file.flush();
  await file.write(0, Buffer.concat([header, name]));
  await file.flush();
}
