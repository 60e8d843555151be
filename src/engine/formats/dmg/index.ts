/** Apple disk images (UDIF), read-only. */
import { ImageError } from '../../error.js';
import type { FormatDriver } from '../../node/driver.js';
import { buildTable } from './chunks.js';
import { dmgNode } from './node.js';
import { readResources, readTrailer } from './resources.js';

export const dmg: FormatDriver = {
  name: 'dmg',
  // The trailer is at the end and cannot be probed; as in QEMU the name decides, and only just.
  probe: (_head, filename) => (filename.length > 4 && filename.endsWith('.dmg') ? 2 : 0),
  openOptions: [],
  async open(context) {
    if (context.writable) throw new ImageError('read-only', 'Image is read-only');
    const { file } = context;
    const trailer = await readTrailer(file);
    const resources = await readResources(file, trailer);
    const table = buildTable(resources, {
      dataForkOffset: trailer.dataForkOffset,
      size: trailer.size,
      warn: (text) => context.warn(text),
    });
    return dmgNode(file, trailer.size, table);
  },
  createOptions: [],
  supportsBacking: false,
};
