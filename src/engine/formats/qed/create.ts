/** Creating QED images. */
import { ImageError } from '../../error.js';
import type { CreateContext } from '../../node/driver.js';
import type { OptionDeclaration } from '../../node/option-table.js';
import {
  DEFAULT_CLUSTER_SIZE,
  DEFAULT_TABLE_SIZE,
  Feature,
  isPowerOfTwoWithin,
  MAGIC,
  MAX_BACKING_NAME,
  MAX_CLUSTER_SIZE,
  MAX_TABLE_SIZE,
  MIN_CLUSTER_SIZE,
  MIN_TABLE_SIZE,
  maxImageSize,
  QedHeader,
  SECTOR,
} from './layout.js';
import { validImageSize } from './open.js';

export const createOptions: readonly OptionDeclaration[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  { name: 'backing_file', type: 'string', help: 'File name of a base image' },
  { name: 'backing_fmt', type: 'string', help: 'Image format of the base image' },
  { name: 'cluster_size', type: 'size', help: 'Cluster size (in bytes)', default: DEFAULT_CLUSTER_SIZE },
  { name: 'table_size', type: 'size', help: 'L1/L2 table size (in clusters)' },
];

export function roundSize(size: number): number {
  return Math.ceil(size / SECTOR) * SECTOR;
}

function invalid(message: string): ImageError {
  return new ImageError('invalid', message);
}

type Wanted = Pick<CreateContext, 'options' | 'backing' | 'size'>;

/** The new header and what follows it. Throws `invalid` for what cannot be. */
function plan(context: Wanted) {
  const { options } = context;
  const clusterSize = (options.cluster_size as number | undefined) ?? DEFAULT_CLUSTER_SIZE;
  const tableSize = (options.table_size as number | undefined) ?? DEFAULT_TABLE_SIZE;
  if (!isPowerOfTwoWithin(clusterSize, MIN_CLUSTER_SIZE, MAX_CLUSTER_SIZE)) {
    throw invalid(
      `QED cluster size must be within range [${MIN_CLUSTER_SIZE}, ${MAX_CLUSTER_SIZE}] and power of 2`,
    );
  }
  if (!isPowerOfTwoWithin(tableSize, MIN_TABLE_SIZE, MAX_TABLE_SIZE)) {
    throw invalid(
      `QED table size must be within range [${MIN_TABLE_SIZE}, ${MAX_TABLE_SIZE}] and power of 2`,
    );
  }
  const size = BigInt(roundSize(context.size));
  if (!validImageSize(size, clusterSize, tableSize)) {
    const most = maxImageSize(clusterSize, tableSize);
    throw invalid(`QED image size must be a non-zero multiple of cluster size and less than ${most} bytes`);
  }
  const filename = context.backing?.filename ?? (options.backing_file as string | undefined);
  const format = context.backing?.format ?? (options.backing_fmt as string | undefined);
  const name = Buffer.from(filename ?? '', 'utf8');
  if (name.byteLength > Math.min(MAX_BACKING_NAME, clusterSize - QedHeader.size)) {
    throw invalid('QED backing filename is too long');
  }
  let features = 0n;
  if (filename !== undefined) {
    features |= Feature.backingFile;
    if (format === 'raw') features |= Feature.backingFormatNoProbe;
  }
  const header = QedHeader.encode({
    magic: MAGIC,
    clusterSize,
    tableSize,
    headerSize: 1,
    features,
    l1TableOffset: BigInt(clusterSize),
    imageSize: size,
    backingFilenameOffset: filename === undefined ? 0 : QedHeader.size,
    backingFilenameSize: name.byteLength,
  });
  return { clusterSize, tableSize, start: Buffer.concat([header, name]) };
}

export function checkCreate(context: Wanted): void {
  plan(context);
}

/** Writes a new image, the header last. Throws `invalid` before anything is written. */
export async function createQed(context: CreateContext): Promise<void> {
  const { clusterSize, tableSize, start } = plan(context);
  const { file } = context;
  await file.truncate(0);
  // The L1 table and all of the header cluster: zeros.
  await file.truncate(clusterSize * (1 + tableSize));
  await file.flush();
  await file.write(0, start);
  await file.flush();
}
