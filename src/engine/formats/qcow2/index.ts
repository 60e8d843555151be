/** The qcow2 format driver. */
import type { FormatDriver } from '../../node/driver.js';
import { amendOptions } from './amend.js';
import { createQcow2, roundSize } from './create.js';
import { isQcow2 } from './header.js';
import { inspectQcow2 } from './inspect.js';
import { measureQcow2 } from './measure.js';
import { openQcow2 } from './open.js';
import { createOptions, openOptions } from './options.js';

export const qcow2: FormatDriver = {
  name: 'qcow2',
  probe: (head) => (isQcow2(head) ? 100 : 0),
  openOptions,
  open: openQcow2,
  inspect: inspectQcow2,
  createOptions,
  create: createQcow2,
  createsHuge: true,
  measure: measureQcow2,
  amendOptions,
  roundSize,
  compresses: true,
  supportsBacking: true,
};
