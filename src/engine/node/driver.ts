/**
 * The driver contract. A format maps: it says where guest bytes are and where new ones may go. The access path
 * (node/access.ts) moves them, walks the backing chain, does copy-on-write, and checks range, state and permission, so
 * that a driver is never called with a range beyond its size, a write to a read-only node, or an empty range.
 */

import type { SafetyCheck } from '../../protocol/commands/image-inspect.js';
import type { MaybePromise, Preallocation, Range, Storage } from '../storage/storage.js';
import type { OptionDeclaration, OptionValues } from './option-table.js';

/** Where a run of guest bytes is. `length` is how much of the asked range this answer covers, from its start, > 0. */
export type Extent =
  /** Plain bytes of a storage. */
  | { readonly kind: 'data'; readonly length: number; readonly storage: Storage; readonly at: number }
  /** Reads as zeros in this layer; `storage` and `at` where host space is preallocated for it. */
  | { readonly kind: 'zero'; readonly length: number; readonly storage?: Storage; readonly at?: number }
  /**
   * Not allocated in this layer: the backing file's bytes, zeros where there is none; `storage` and `at` where host space is
   * reserved for it all the same.
   */
  | { readonly kind: 'backing'; readonly length: number; readonly storage?: Storage; readonly at?: number }
  /**
   * Needs the driver to make sense of the stored bytes (compressed). `read` fills the whole of `into`, whose length is
   * this extent's. One extent never spans two stored units.
   */
  | {
      readonly kind: 'packed';
      readonly length: number;
      read(into: Uint8Array): Promise<void>;
    };

/** Where guest bytes may be written. */
export interface WriteTarget {
  readonly storage: Storage;
  /** Host offset for the first guest byte of the asked range. */
  readonly at: number;
  /** How much of the asked range may go there, > 0. */
  readonly length: number;
  /**
   * Bytes before and after that range which must be written together with it, with the guest's present content there:
   * the rest of the allocation units that are being mapped anew. The access path reads them and writes all in one.
   */
  readonly fillBefore: number;
  readonly fillAfter: number;
  /** Links the data into the metadata, after it was written. Absent: nothing to link. */
  commit?(): MaybePromise<void>;
  /** Gives the place back where the data could not be written. */
  abort?(): MaybePromise<void>;
}

/** The image's own record of its backing file. Empty strings do not occur. */
export interface BackingReference {
  readonly filename: string;
  readonly format?: string;
  /**
   * The backing file's `contentId` as it was when this image was made. Where the opened backing file has another, or none,
   * mapping goes on, but reads that reach it fail (EINVAL).
   */
  readonly contentId?: number;
}

export interface SnapshotInfo {
  readonly id: string;
  readonly name: string;
  readonly vmStateSize: number;
  readonly dateSec: number;
  readonly dateNsec: number;
  readonly vmClockNsec: bigint;
  readonly icount?: bigint;
  readonly diskSize: number;
}

export interface BitmapInfo {
  readonly name: string;
  readonly granularity: number;
  readonly flags: readonly string[];
}

/** What a bitmap says of a guest disk of `size` bytes. */
export interface BitmapContent {
  readonly size: number;
  /** Runs of dirty guest bytes, [at, end), in order; the last may reach over the end. */
  runs(): Iterable<readonly [number, number]>;
}

/**
 * Persistent bitmaps, read and changed. Changes are on the disk when the image is closed. Errors are in the reference's
 * words: a bitmap that is not there, or that is inconsistent.
 */
export interface BitmapFacet {
  list(): readonly BitmapInfo[];
  /** A new one, all clear, that records the guest's writes. */
  add(name: string, granularity?: number): Promise<void>;
  remove(name: string): Promise<void>;
  clear(name: string): Promise<void>;
  /** Whether it records the guest's writes. */
  setEnabled(name: string, enabled: boolean): Promise<void>;
  /** Adds what is dirty in another one. */
  merge(name: string, source: BitmapContent): Promise<void>;
  content(name: string): Promise<BitmapContent>;
  /** Dirty bytes of each by its name, in whole granules; 0 of those that cannot be used. At most as many where to count takes long. */
  counts(): Promise<ReadonlyMap<string, number>>;
}

/** QAPI's ImageCheck, its counts, and what was learnt of the image's layout. Absent where a format cannot say. */
export interface CheckResult {
  checkErrors: number;
  corruptions: number;
  leaks: number;
  corruptionsFixed: number;
  leaksFixed: number;
  imageEndOffset?: number;
  totalClusters?: number;
  allocatedClusters?: number;
  fragmentedClusters?: number;
  compressedClusters?: number;
}

export interface CheckContext {
  readonly repair: { readonly leaks: boolean; readonly errors: boolean };
  /** One line of what was found, in qemu-img's words, without the line end. */
  report(line: string): void;
  readonly signal?: AbortSignal;
  progress?(done: number, total: number): void;
}

export interface CheckFacet {
  check(context: CheckContext): Promise<CheckResult>;
}

export interface SnapshotFacet {
  list(): readonly SnapshotInfo[];
  /** A read-only view of the guest content at that snapshot; lives as long as the node. */
  view(snapshot: SnapshotInfo): Promise<FormatNode>;
  /** What changes snapshots: absent where the image cannot be written or cannot have any. */
  readonly edit?: SnapshotEditor | undefined;
}

/** Each call is durable when it returns; a crash on the way leaves the image before or after it, with leaks at worst. */
export interface SnapshotEditor {
  /** Keeps the guest's present content. The driver chooses the id. */
  create(snapshot: Omit<SnapshotInfo, 'id' | 'diskSize'>): Promise<SnapshotInfo>;
  /** Makes the guest's content and size what they were. */
  apply(snapshot: SnapshotInfo): Promise<void>;
  delete(snapshot: SnapshotInfo): Promise<void>;
}

/** Compressed writing, one unit (cluster, grain) at a time. */
export interface PackFacet {
  /** Guest bytes in one unit. */
  readonly unit: number;
  /** True where the image takes nothing else: convert compresses whether asked to or not. */
  readonly always?: boolean;
  /** The stored form of one unit of guest bytes, or undefined where it would not be smaller. May run in parallel. */
  compress(unit: Uint8Array): Promise<Uint8Array | undefined>;
  /** Stores a compressed unit at the guest offset `at`, a multiple of `unit`. */
  write(at: number, packed: Uint8Array): Promise<void>;
  /** All units of a conversion are written: the file may end as it likes to. */
  end?(): Promise<void>;
}

/** What `info` shows of an image beyond its size. Keys of `specific.data` are QAPI's. */
export interface FormatInfo {
  readonly clusterSize?: number;
  readonly compressed?: boolean;
  readonly encrypted?: boolean;
  readonly dirty?: boolean;
  readonly specific?: { readonly type: string; readonly data: Readonly<Record<string, unknown>> };
}

export interface FormatNode {
  /** Guest-visible length in bytes. */
  readonly size: number;
  /**
   * Allocation granularity in bytes: `prepareWrite`'s targets, `zero` and `discard` act on whole units of this; the access
   * path locks whole units, so that two writers never meet in one. 1 where there is no such unit.
   */
  readonly unit: number;
  /** Storages by child name beyond `file`: `data-file`, `extents.0`. */
  readonly children: ReadonlyMap<string, Storage>;
  readonly backing?: BackingReference | undefined;
  /** Identifies the present content to images that use this one as their backing file. */
  readonly contentId?: number | undefined;
  /** True where a newly created image reads as zeros (or as its backing file) without being written. */
  readonly startsAsZero: boolean;
  /**
   * Whether the driver itself tells the host's holes under its data, as zero extents with a place: `map` calls these data.
   * Absent: the host is asked about data extents where the file looks sparse.
   */
  readonly dataHoles?: boolean;
  /** True where `map` tells nothing, as the reference does with this format: all of the disk is data in no known place. */
  readonly opaque?: boolean;
  /** True where the guest's bytes are the file's own: `map` tells where the file has them. */
  readonly transparent?: boolean;
  /** Where the first bytes of the range are. Sync where the metadata is at hand. */
  map(range: Range): MaybePromise<Extent>;
  /**
   * As `map`, for reading alone: where the bytes are, without asking the host whether they are holes. Present where that is
   * less work.
   */
  locate?(range: Range): MaybePromise<Extent>;
  prepareWrite?(range: Range): MaybePromise<WriteTarget>;
  /**
   * Makes whole units read as zeros by metadata alone (never falling through to the backing file). False where the image
   * cannot: the access path writes zeros then. `unmap`: host space may be given back.
   */
  zero?(range: Range, options: { readonly unmap: boolean }): Promise<boolean>;
  /** Gives the host space of whole units back; they read as zeros or as the backing file after, as the format has it. */
  discard?(range: Range): Promise<void>;
  /**
   * What is added is not allocated. With `zeroNew` its whole units read as zeros where the format can say so by metadata
   * alone: a backing file reaches under them.
   */
  resize?(
    size: number,
    options: { readonly preallocation: Preallocation; readonly zeroNew?: boolean },
  ): Promise<void>;
  /**
   * Records another backing file (undefined: none), durably; the image reads as before or with the new one at every instant.
   * Throws `no-space` where the name does not fit, `invalid` where the image cannot have one. Nothing is opened.
   */
  changeBacking?(filename: string | undefined, format: string | undefined): Promise<void>;
  /**
   * Lets all guest data go, durably: the image reads as its backing file after. Snapshots and bitmaps stay. Interrupted, some
   * of the data is still there.
   */
  makeEmpty?(): Promise<void>;
  /** All metadata into the storages, in a crash-safe order, and the storages flushed. */
  flush?(): Promise<void>;
  /** Flushes where writable, and closes every storage that the driver itself opened (not `file`). */
  close(): Promise<void>;
  info(): MaybePromise<FormatInfo>;
  readonly pack?: PackFacet | undefined;
  readonly checker?: CheckFacet | undefined;
  readonly amender?: AmendFacet | undefined;
  readonly snapshots?: SnapshotFacet | undefined;
  bitmaps?(): Promise<readonly BitmapInfo[]>;
  readonly bitmapStore?: BitmapFacet | undefined;
  /** True where persistent bitmaps can be stored in this image. */
  readonly storesBitmaps?: boolean;
}

/** How a driver reaches files other than its own: every name from inside an image goes through the gate. */
export interface OpenContext {
  /** The image file itself, opened and locked. The node layer closes it. */
  readonly file: Storage;
  readonly writable: boolean;
  /** The driver's own runtime options, typed by its `openOptions`. */
  readonly options: OptionValues;
  /** Set by `check`: open what can be opened, repair nothing on the way. */
  readonly forCheck: boolean;
  /** Do not touch the guest data (`info`, `snapshot -l`): children that hold only data need not exist. */
  readonly metadataOnly: boolean;
  /**
   * Opens a file that the image or the caller names as a child (`data-file`, `extents.0`). Options that the caller
   * gave for that child (`data-file.filename=...`) win over `recorded`, the name found in the image, which is relative
   * to the image's folder (with `inCwd`: the caller's) and may be refused by the gate. With `unopened` the options are taken
   * and that is all. Undefined where neither is there.
   */
  openChild(
    child: string,
    recorded: string | undefined,
    options?: { readonly writable?: boolean; readonly inCwd?: boolean; readonly unopened?: boolean },
  ): Promise<Storage | undefined>;
  /** A warning for the user, one line, without prefix; `hint` follows it as it is. */
  warn(text: string, hint?: string): void;
  /** One line for the user, as it is. */
  say?(line: string): void;
  /** True where the caller names a backing file, whatever the image records. */
  readonly backed?: boolean;
}

export interface CreateContext {
  /** The new, empty, writable file. */
  readonly file: Storage;
  /** Its name as the user wrote it; further files are named after it. */
  readonly filename: string;
  /** Guest size in bytes, already rounded and checked as the format wants by the driver itself. */
  readonly size: number;
  readonly options: OptionValues;
  /** The size and format of the backing file, where one was named and opened. */
  readonly backing?: { readonly filename: string; readonly format?: string };
  /**
   * Opens the backing file, by itself, to tell what it is: for formats that record the `contentId`. Throws where it cannot be
   * opened. Absent where no backing file was named.
   */
  readonly inspectBacking?: () => Promise<{
    readonly format: string;
    readonly contentId: number | undefined;
  }>;
  /**
   * Creates (or truncates) a further file that the image consists of, named relative to the image's folder. The driver
   * closes it, or hands it to a node that does.
   */
  createExtra(filename: string): Promise<Storage>;
  /** As `createExtra`, for a data file, whose relative names belong to the caller's folder. */
  openExtra(filename: string): Promise<Storage>;
}

/** An image whose size is to be told before it is made. Sizes of up to 2^63 bytes are asked for: bigint. */
export interface MeasureSpec {
  /** Create options that the user gave, typed by `createOptions`. */
  readonly options: OptionValues;
  /** Guest bytes. */
  readonly size: bigint;
  /** Where the new image will have the content of another; absent: an empty one. */
  readonly source?: MeasureSource;
}

export interface MeasureSource {
  /** Guest bytes in units of `unit` bytes (a power of two) that hold any data; whole units count. */
  dataBytes(unit: number): Promise<bigint>;
  /** The source's persistent bitmaps; undefined where it cannot have any. */
  readonly bitmaps?: readonly BitmapInfo[];
}

/** Bytes of the new file, or files. */
export interface Measure {
  readonly required: bigint;
  readonly fullyAllocated: bigint;
  /** What the source's bitmaps take on top; undefined where there can be none. */
  readonly bitmaps?: bigint;
}

/** Changing the options of an image in place. */
export interface AmendFacet {
  /**
   * Makes the changes that were given, typed by the driver's `amendOptions`; durable when it resolves. At every instant the
   * image opens and reads as before. Throws `invalid` or `unsupported` for what cannot be; changes made before stay.
   */
  amend(options: OptionValues, context: AmendContext): Promise<void>;
}

export interface AmendContext {
  readonly signal: AbortSignal;
  /** Asked between steps: undefined, or a promise to wait for; it rejects when the work is cancelled. */
  pace(): Promise<void> | undefined;
  /** Gives the image another size, as `resize` does, what a backing file has there hidden. */
  resize(size: number): Promise<void>;
  /** How far the change is that is being made, in whatever units. */
  progress(done: number, total: number): void;
}

/** One of the safety checks that `image-inspect` makes. */
export interface Finding {
  readonly check: SafetyCheck['name'];
  readonly status: SafetyCheck['status'];
  readonly text: string;
  /** Files that are referred to. */
  readonly names?: readonly string[];
}

export interface FormatDriver {
  readonly name: string;
  /** 0: not mine, 100: certainly. `head` is the start of the file, up to 2048 bytes, zero-padded. */
  probe(head: Uint8Array, filename: string, fileSize: number): number;
  /**
   * Safety checks that the driver alone can make, on the header, also where `open` would refuse the image; they win over
   * what is learnt by opening it. Opens nothing, and throws for failures of the host only.
   */
  inspect?(file: Storage): Promise<readonly Finding[]>;
  /** Options for opening, beyond those that every node has. */
  readonly openOptions: readonly OptionDeclaration[];
  open(context: OpenContext): Promise<FormatNode>;
  /** Options for `create -o`, in the order of the `Formatting` line; `-o help` sorts them. */
  readonly createOptions: readonly OptionDeclaration[];
  /** Refuses options of a new image before any file is touched. Absent: `create` says it, and the file is gone then. */
  checkCreate?(context: Pick<CreateContext, 'options' | 'backing' | 'size'>): void;
  create?(context: CreateContext): Promise<void>;
  /** True where `create` copes with sizes beyond 2^53; others are not asked to. */
  readonly createsHuge?: boolean;
  /** How large an image's file will be. Throws `invalid` or `limit` for what cannot be made. */
  measure?(spec: MeasureSpec): Promise<Measure>;
  /** Options that `amend -o` takes; absent where nodes have no amend facet. */
  readonly amendOptions?: readonly OptionDeclaration[];
  /** What size an image of `size` bytes gets (rounding up to sectors or clusters). */
  roundSize?(size: number): number;
  /** What is said of a backing format that is none; absent: the usual words. */
  unknownBackingFormat?(format: string): string;
  /** False where images do not tell their cluster size, even that they have none: rebase asks for it. */
  readonly tellsClusters?: false;
  /** True where images, or some of them, can take compressed units: decides what `convert -c` says for other formats. */
  readonly compresses?: boolean;
  /** True where the image may have a backing file: decides what `-b` says for other formats. */
  readonly supportsBacking: boolean;
}
