/** Small Parallels images, and where their fields and tables are. */
import {
  BitmapFeature,
  ExtensionHeader,
  Feature,
  Header,
} from '../../src/engine/formats/parallels/layout.js';
import { CLUSTER, type ParallelsSpec, parallelsImage, stampExtension } from '../unit/parallels-images.js';
import { fieldsOf, type Seed } from './seed.js';

function seed(name: string, spec: ParallelsSpec): Seed {
  const tables = [{ name: 'BAT', at: Header.size, count: spec.bat.length, width: 4, little: true }];
  const fields = fieldsOf('header', Header, 0, true);
  const { extension } = spec;
  if (extension === undefined) {
    return { name, files: [{ name: 'disk.hds', bytes: parallelsImage(spec), fields, tables, texts: [] }] };
  }
  const at = extension * CLUSTER;
  const feature = at + ExtensionHeader.size;
  fields.push(
    ...fieldsOf('extension', ExtensionHeader, at, true),
    ...fieldsOf('feature', Feature, feature, true),
    ...fieldsOf('bitmap', BitmapFeature, feature + Feature.size, true),
  );
  // Every second mutant would fail at its checksum: it is made right again, where the cluster is still there.
  const assemble = (parts: Uint8Array) => {
    const out = Buffer.from(parts);
    if (out.length >= at + CLUSTER) stampExtension(out.subarray(at, at + CLUSTER));
    return out;
  };
  return {
    name,
    files: [{ name: 'disk.hds', bytes: parallelsImage(spec), fields, tables, texts: [], assemble }],
  };
}

export const parallelsSeeds: readonly Seed[] = [
  seed('new magic', { bat: [2, 3, 0, 0, 1, 0, 0, 4] }),
  seed('old magic', { v1: true, bat: [2, 3, 0, 0, 1, 0, 0, 4] }),
  seed('empty', { bat: [0, 0, 0], clusters: 1 }),
  seed('extension', { bat: [0, 1, 0], clusters: 4, extension: 2 }),
  seed('in use', { bat: [1, 2], header: { inUse: 0x746f6e59 } }),
];
