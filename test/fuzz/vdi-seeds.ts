/** Small VDI images, and where their fields and tables are. */
import { DISCARDED, Header, TYPE_STATIC } from '../../src/engine/formats/vdi/layout.js';
import { type VdiSpec, vdiImage } from '../unit/vdi-images.js';
import { fieldsOf, type Seed } from './seed.js';

function seed(name: string, spec: VdiSpec): Seed {
  const tables = [{ name: 'map', at: 512, count: spec.map.length, width: 4, little: true }];
  const fields = fieldsOf('header', Header, 0, true);
  return { name, files: [{ name: 'disk.vdi', bytes: vdiImage(spec), fields, tables, texts: [] }] };
}

export const vdiSeeds: readonly Seed[] = [
  seed('dynamic', { map: [0, undefined, 1, DISCARDED] }),
  seed('empty', { map: [undefined, undefined] }),
  seed('static', { map: [0, 1], header: { imageType: TYPE_STATIC } }),
];
