/** Small Parallels images by hand. */
import { createHash } from 'node:crypto';
import {
  BitmapFeature,
  EXTENSION_MAGIC,
  ExtensionHeader,
  FEATURE_BITMAP,
  Feature,
  Header,
  MAGIC_EXT,
  MAGIC_V1,
  SECTOR,
} from '../../src/engine/formats/parallels/layout.js';

export const CLUSTER = 4096;

export interface ParallelsSpec {
  readonly v1?: boolean;
  /** Host cluster (1 is the first after header and BAT) of each guest cluster; 0: none. */
  readonly bat: readonly number[];
  readonly header?: Partial<ReturnType<typeof Header.decode>>;
  /** Host clusters that the file has, with that of header and BAT. */
  readonly clusters?: number;
  /** Host cluster of an extension with a bitmap, whose bits are in the cluster after it. */
  readonly extension?: number;
}

/** Host cluster n is filled with n. */
export function parallelsImage(spec: ParallelsSpec): Buffer {
  const { bat, v1 = false } = spec;
  const clusters = spec.clusters ?? Math.max(0, ...bat) + 1;
  const file = Buffer.alloc(clusters * CLUSTER);
  for (let n = 1; n < clusters; n++) file.fill(n, n * CLUSTER, (n + 1) * CLUSTER);
  const sectors = CLUSTER / SECTOR;
  const header = Header.encode({
    magic: Buffer.from(v1 ? MAGIC_V1 : MAGIC_EXT),
    version: 2,
    heads: 16,
    tracks: sectors,
    batEntries: bat.length,
    sectors: BigInt(bat.length * sectors),
    dataOff: sectors,
    ...(spec.extension === undefined ? {} : { extOff: BigInt(spec.extension * sectors) }),
    ...spec.header,
  });
  file.set(header);
  bat.forEach((cluster, index) => {
    file.writeUInt32LE(v1 ? cluster * sectors : cluster, Header.size + index * 4);
  });
  if (spec.extension !== undefined) {
    const area = Buffer.alloc(CLUSTER);
    area.set(
      Feature.encode({ magic: FEATURE_BITMAP, dataSize: BitmapFeature.size + 8 }),
      ExtensionHeader.size,
    );
    const feature = ExtensionHeader.size + Feature.size;
    area.set(
      BitmapFeature.encode({
        size: BigInt(bat.length * sectors),
        id: Buffer.from('00112233445566778899aabbccddeeff', 'hex'),
        granularity: 1,
        l1Size: 1,
      }),
      feature,
    );
    area.writeBigUInt64LE(BigInt((spec.extension + 1) * sectors), feature + BitmapFeature.size);
    stampExtension(area);
    file.set(area, spec.extension * CLUSTER);
    file.fill(0, (spec.extension + 1) * CLUSTER, (spec.extension + 2) * CLUSTER);
    // Sectors 1, 2 and 9 are dirty.
    file[(spec.extension + 1) * CLUSTER] = 0b110;
    file[(spec.extension + 1) * CLUSTER + 1] = 0b10;
  }
  return file;
}

/** The magic and the right checksum. */
export function stampExtension(area: Buffer): void {
  const checksum = createHash('md5').update(area.subarray(ExtensionHeader.size)).digest();
  area.set(ExtensionHeader.encode({ magic: EXTENSION_MAGIC, checksum }));
}
