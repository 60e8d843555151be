/** VHD ("vpc"): fixed and dynamic disks, and differencing disks for reading, which the reference takes for dynamic ones. */
import { ImageError } from '../../error.js';
import type { FormatDriver } from '../../node/driver.js';
import { create, createOptions } from './create.js';
import { DiskType, SECTOR } from './layout.js';
import { vpcNode } from './node.js';
import { openImage } from './open.js';
import { parentOf } from './parent.js';
import { probe } from './probe.js';

export const vpc: FormatDriver = {
  name: 'vpc',
  probe,
  openOptions: [
    {
      name: 'force_size_calc',
      type: 'string',
      help: 'Force disk size calculation to use either CHS geometry, or use the disk current_size specified in the VHD footer. {chs, current_size}',
    },
  ],
  async open(context) {
    const image = await openImage(context);
    const { blocks, footer } = image;
    const differencing = blocks !== undefined && footer.diskType === DiskType.differencing;
    if (context.writable && !context.forCheck) {
      if (differencing) {
        throw new ImageError('unsupported', 'Differencing VHD images cannot be written to');
      }
      if (blocks !== undefined && blocks.tableAt % SECTOR !== 0) {
        throw new ImageError(
          'unsupported',
          'VHD images whose table is not at a sector boundary cannot be written to',
        );
      }
    }
    const parent = differencing ? await parentOf(context.file, blocks.header) : undefined;
    return vpcNode(image, parent, context.writable);
  },
  createOptions,
  create,
  supportsBacking: false,
};
