/** The qcow (version 1) format driver. */
import type { FormatDriver } from '../../node/driver.js';
import { checkCreate, createOptions, createQcow, roundSize } from './create.js';
import { QcowNode } from './node.js';
import { openImage, openOptions } from './open.js';
import { probe } from './probe.js';

export const qcow: FormatDriver = {
  name: 'qcow',
  probe,
  openOptions,
  open: async (context) => new QcowNode(await openImage(context)),
  createOptions,
  checkCreate,
  create: createQcow,
  unknownBackingFormat: (format) => `unrecognized backing format '${format}'`,
  roundSize,
  compresses: true,
  supportsBacking: true,
};
