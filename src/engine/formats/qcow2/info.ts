/** What `info` tells of a qcow2 image: QAPI's ImageInfoSpecificQCow2, keys in the order in which the reference prints them. */
import type { BitmapInfo, FormatInfo } from '../../node/driver.js';
import { cString, extension, type Header, hasFeature, isLazy } from './header.js';
import { Autoclear, CompressionType, CryptMethod, ExtensionType, type Geometry } from './layout.js';

export function describe(header: Header, geometry: Geometry, bitmaps: readonly BitmapInfo[]): FormatInfo {
  const isV3 = header.version >= 3;
  const encrypted = header.cryptMethod !== CryptMethod.none;
  const data: Record<string, unknown> = {
    compat: isV3 ? '1.1' : '0.10',
    'compression-type': header.compressionType === CompressionType.zstd ? 'zstd' : 'zlib',
  };
  if (isV3) data['lazy-refcounts'] = isLazy(header);
  if (bitmaps.length > 0) {
    data.bitmaps = bitmaps.map(({ flags, name, granularity }) => ({ flags, name, granularity }));
  }
  data['refcount-bits'] = geometry.refcountBits;
  if (encrypted) data.encrypt = { format: header.cryptMethod === CryptMethod.aes ? 'aes' : 'luks' };
  // The name is told even where no feature bit says that it counts.
  const name = extension(header, ExtensionType.dataFile);
  if (name !== undefined) data['data-file'] = cString(name);
  if (hasFeature(header, 'dataFile')) {
    data['data-file-raw'] = (header.autoclear & Autoclear.dataFileRaw) !== 0n;
  }
  if (isV3) {
    data.corrupt = hasFeature(header, 'corrupt');
    data['extended-l2'] = geometry.extendedL2;
  }
  return {
    clusterSize: geometry.clusterSize,
    ...(encrypted ? { encrypted } : {}),
    dirty: hasFeature(header, 'dirty'),
    specific: { type: 'qcow2', data },
  };
}
