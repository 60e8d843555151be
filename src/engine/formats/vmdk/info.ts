/** What `info` tells: QAPI's ImageInfoSpecificVmdk, its members in the order in which the reference prints them. */
import type { FormatInfo } from '../../node/driver.js';
import type { VmdkExtent } from './extent.js';
import type { VmdkImage } from './open.js';

/** Index of the extent that holds a guest offset; the offset is within the disk. */
export function extentIndex(extents: readonly VmdkExtent[], at: number): number {
  let low = 0;
  let high = extents.length - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const extent = extents[middle]!;
    if (at < extent.at + extent.size) high = middle;
    else low = middle + 1;
  }
  return low;
}

function extentInfo(extent: VmdkExtent): Readonly<Record<string, unknown>> {
  const sparse = extent.kind === 'sparse' ? extent : undefined;
  return {
    ...(sparse?.compressed ? { compressed: true } : {}),
    'virtual-size': extent.size,
    filename: extent.kind === 'zero' ? '' : extent.storage.filename,
    ...(sparse === undefined ? {} : { 'cluster-size': sparse.grain }),
    format: extent.type,
  };
}

/** The grain size that all extents share, 0 where all are flat, undefined where they differ. */
function commonGrain(extents: readonly VmdkExtent[]): number | undefined {
  let common: { grain: number; compressed: boolean } | undefined;
  for (const extent of extents) {
    if (extent.kind === 'zero') continue;
    const grain = extent.kind === 'sparse' ? extent.grain : 0;
    const compressed = extent.kind === 'sparse' && extent.compressed;
    common ??= { grain, compressed };
    if (common.grain !== grain || common.compressed !== compressed) return undefined;
  }
  return common?.grain ?? 0;
}

export function vmdkInfo(image: VmdkImage): FormatInfo {
  const grain = commonGrain(image.extents);
  return {
    ...(grain ? { clusterSize: grain } : {}),
    // The reference tells neither of these for an image whose extents differ in kind.
    ...(grain === undefined ? {} : { dirty: false }),
    specific: {
      type: 'vmdk',
      data: {
        cid: image.cid,
        'parent-cid': image.parentCid,
        'create-type': image.createType,
        extents: image.extents.map(extentInfo),
      },
    },
  };
}
