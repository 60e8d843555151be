/** Parallels expandable images, of both kinds. */
import type { FormatDriver } from '../../node/driver.js';
import type { OptionDeclaration } from '../../node/option-table.js';
import { checkCreate, createOptions, createParallels, roundSize } from './create.js';
import { openParallels } from './node.js';
import { probe } from './probe.js';

/** QEMU's runtime options, accepted so that its command lines work: space is reserved by the storage itself. */
const openOptions: readonly OptionDeclaration[] = [
  { name: 'prealloc-size', type: 'size', help: 'Preallocation size on image expansion' },
  {
    name: 'prealloc-mode',
    type: 'string',
    help: 'Preallocation mode on image expansion (allowed values: falloc, truncate)',
  },
];

export const parallels: FormatDriver = {
  name: 'parallels',
  probe,
  openOptions,
  open: openParallels,
  createOptions,
  create: createParallels,
  checkCreate,
  roundSize,
  tellsClusters: false,
  supportsBacking: true,
};
