/** VirtualBox disk images: dynamic and static. */
import type { FormatDriver } from '../../node/driver.js';
import { checkCreate, createOptions, createVdi, roundSize } from './create.js';
import { readHeader } from './header.js';
import { VdiNode } from './node.js';
import { probe } from './probe.js';

export const vdi: FormatDriver = {
  name: 'vdi',
  probe,
  openOptions: [],
  async open({ file, writable, forCheck }) {
    return new VdiNode(await readHeader(file), writable, writable && forCheck);
  },
  createOptions,
  create: createVdi,
  checkCreate,
  roundSize,
  supportsBacking: false,
};
