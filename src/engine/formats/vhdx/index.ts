/** VHDX, by Microsoft's [MS-VHDX]: dynamic and fixed disks. */
import type { FormatDriver } from '../../node/driver.js';
import { checkCreate, createOptions, createVhdx, roundSize } from './create.js';
import { openVhdx } from './open.js';
import { probe } from './probe.js';

export const vhdx: FormatDriver = {
  name: 'vhdx',
  probe,
  openOptions: [],
  open: openVhdx,
  createOptions,
  create: createVhdx,
  checkCreate,
  roundSize,
  supportsBacking: false,
};
