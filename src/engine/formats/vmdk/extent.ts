/** What an image is made of, once headers and descriptor have been checked. All in bytes. */
import type { Storage } from '../../storage/storage.js';
import type { HostedHeader } from './layout.js';

export type Hosted = ReturnType<typeof HostedHeader.decode>;

interface Placed {
  /** Where in the guest disk the extent starts, and its length. */
  readonly at: number;
  readonly size: number;
  /** The word of the extent line; empty where the image file is the extent. */
  readonly type: string;
}

/** A run of plain bytes in a file. */
export interface FlatExtent extends Placed {
  readonly kind: 'flat';
  readonly storage: Storage;
  readonly start: number;
}

/** Zeros without a file. */
export interface ZeroExtent extends Placed {
  readonly kind: 'zero';
}

/** What the header of a sparse extent says, checked. */
export interface SparseGeometry {
  readonly size: number;
  /** Guest bytes in a grain, > 0, a multiple of the sector size. */
  readonly grain: number;
  readonly entriesPerTable: number;
  /** Byte offset of the grain directory; it may be past the end of the file, and reads as zeros then. */
  readonly directoryAt: number;
  /** The same of the redundant one, where there is one. */
  readonly backupAt?: number | undefined;
  readonly directoryEntries: number;
  /** seSparse: table entries are 64 bits wide, and tables and grains are numbered from these sectors. */
  readonly wide?: { readonly tablesOffset: number; readonly grainsOffset: number };
  readonly zeroedGrains: boolean;
  readonly compressed: boolean;
  /** Compressed grains have a marker before them. */
  readonly markers: boolean;
  /** Bytes at the start of the file that hold no grain; 0 where that is not told. */
  readonly metadataEnd: number;
  /** Of a hosted extent: the header that counts, and whether it is the footer at the file's end. */
  readonly hosted?: { readonly header: Hosted; readonly atEnd: boolean };
}

/** Grains that a two-level table maps. */
export interface SparseExtent extends Placed, Omit<SparseGeometry, 'directoryAt' | 'backupAt'> {
  readonly kind: 'sparse';
  readonly storage: Storage;
  /** Distinguishes the tables of this extent in the common cache. */
  readonly index: number;
  /** A stream that is written anew gets another directory. */
  directoryAt: number;
  backupAt?: number | undefined;
}

export type VmdkExtent = FlatExtent | ZeroExtent | SparseExtent;
