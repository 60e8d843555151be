/** The QED format driver. */
import type { FormatDriver } from '../../node/driver.js';
import { checkCreate, createOptions, createQed, roundSize } from './create.js';
import { QedNode } from './node.js';
import { openImage } from './open.js';
import { probe } from './probe.js';

export const qed: FormatDriver = {
  name: 'qed',
  probe,
  openOptions: [],
  open: async (context) => new QedNode(await openImage(context)),
  createOptions,
  checkCreate,
  create: createQed,
  roundSize,
  supportsBacking: true,
};
