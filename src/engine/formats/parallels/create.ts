/** New images. */
import { ImageError } from '../../error.js';
import type { CreateContext } from '../../node/driver.js';
import type { OptionDeclaration } from '../../node/option-table.js';
import { HEADS, Header, MAGIC_EXT, SECTOR, SECTORS_PER_CYLINDER, VERSION } from './layout.js';

const DEFAULT_CLUSTER = 1024 * 1024;

export const createOptions: readonly OptionDeclaration[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  {
    name: 'cluster_size',
    type: 'size',
    help: 'Parallels image cluster size',
    default: DEFAULT_CLUSTER,
  },
];

/** An entry of the BAT counts clusters in 32 bits. */
const MAX_CLUSTERS = 2 ** 32;
const MAX_CLUSTER = 0x7fff_ffff;

/** Guest sizes are whole sectors. */
export function roundSize(size: number): number {
  return Math.ceil(size / SECTOR) * SECTOR;
}

/** Throws `invalid` for options that make no sense. */
function plan({ size: asked, options }: Pick<CreateContext, 'options' | 'size'>) {
  const size = roundSize(asked);
  const given = (options.cluster_size as number | undefined) ?? DEFAULT_CLUSTER;
  const cluster = Math.ceil(given / SECTOR) * SECTOR;
  if (cluster > MAX_CLUSTER) throw new ImageError('invalid', 'Cluster size is too large');
  if (size >= MAX_CLUSTERS * cluster) {
    throw new ImageError('invalid', 'Image size is too large for this cluster size');
  }
  return { size, cluster };
}

export function checkCreate(context: Pick<CreateContext, 'options' | 'size'>): void {
  plan(context);
}

/** Writes a new image, the header last. Throws as `checkCreate`, before anything is written. */
export async function createParallels(context: CreateContext): Promise<void> {
  const { file } = context;
  const { size, cluster } = plan(context);
  const batEntries = Math.ceil(size / cluster);
  const dataOff = Math.ceil((Header.size + batEntries * 4) / cluster) * cluster;
  await file.zero({ at: 0, length: dataOff });
  await file.flush();
  const header = Header.encode({
    magic: Buffer.from(MAGIC_EXT),
    version: VERSION,
    heads: HEADS,
    cylinders: Math.min(0xffff_ffff, Math.floor(size / SECTOR / HEADS / SECTORS_PER_CYLINDER)),
    tracks: cluster / SECTOR,
    batEntries,
    sectors: BigInt(size / SECTOR),
    dataOff: dataOff / SECTOR,
  });
  await file.write(0, header);
}
