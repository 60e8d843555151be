/** What a use of a file does with it, and lets others do at the same time. */
import { ImageError } from '../error.js';

/** QEMU's names, in the order of its lock bytes. */
export const PERMISSIONS = ['consistent read', 'write', 'write unchanged', 'resize'] as const;

/** A set of permissions, bit n for `PERMISSIONS[n]`. */
export type PermissionSet = number;

export const CONSISTENT_READ: PermissionSet = 1;
export const WRITE: PermissionSet = 2;
export const WRITE_UNCHANGED: PermissionSet = 4;
export const RESIZE: PermissionSet = 8;
export const NO_PERMISSIONS: PermissionSet = 0;
export const ALL_PERMISSIONS: PermissionSet = 15;

export interface Permissions {
  readonly uses: PermissionSet;
  readonly shares: PermissionSet;
}

/** How a file serves an image, which decides what it is locked for. */
export type FileRole =
  /** Metadata of a format, with or without guest data: `file` of qcow2, vdi, vmdk, ..., VMDK extents, all backing files of these. */
  | 'format-metadata'
  /** Guest data and nothing that another could confuse: `file` of raw and luks. */
  | 'raw-data'
  /** Guest data whose layout is kept in another file: qcow2's `data-file`, and raw with an offset or a size. */
  | 'data-file'
  /** A file being created or emptied, before a format is opened on it. */
  | 'create';

export interface FileUse {
  readonly role: FileRole;
  readonly writable?: boolean;
  /** The image's length is going to be changed: `resize` on raw. Formats that keep metadata always may grow. */
  readonly resize?: boolean;
  /** `-U`: lets others do what they like. Read-only. */
  readonly forceShare?: boolean;
  /** No guest data is going to be read: `info`. */
  readonly metadataOnly?: boolean;
  /** Nobody may change it meanwhile, though the role would allow it: the source of `convert`. */
  readonly stable?: boolean;
}

/** What stock qemu-img 10.0 locks a file for, found by tracing its fcntl calls. */
export function permissionsFor(use: FileUse): Permissions {
  const { role, writable = false, resize = false, forceShare = false } = use;
  if (forceShare && writable) {
    throw new ImageError('invalid', 'force-share=on can only be used with read-only images');
  }
  if (role === 'create') return { uses: WRITE | RESIZE, shares: ALL_PERMISSIONS & ~RESIZE };
  let uses = use.metadataOnly ? NO_PERMISSIONS : CONSISTENT_READ;
  if (writable) uses |= WRITE;
  if (resize || (writable && role !== 'raw-data')) uses |= RESIZE;
  if (forceShare) return { uses, shares: ALL_PERMISSIONS };
  if (role === 'format-metadata' || use.stable) return { uses, shares: ALL_PERMISSIONS & ~(WRITE | RESIZE) };
  return { uses, shares: role === 'data-file' ? ALL_PERMISSIONS & ~RESIZE : ALL_PERMISSIONS };
}
