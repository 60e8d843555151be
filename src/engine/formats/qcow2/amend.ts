/** Changing options of an image in place. All that can be refused is refused before anything is changed. */
import { ImageError } from '../../error.js';
import type { AmendContext } from '../../node/driver.js';
import type { OptionDeclaration, OptionValues } from '../../node/option-table.js';
import { rewriteHeader } from './backing.js';
import { expandZeros } from './expand-zeros.js';
import { type Header, isLazy } from './header.js';
import { hex } from './image.js';
import { Autoclear, Compatible, ExtensionType, Incompatible, MAX_REFCOUNT_ORDER } from './layout.js';
import type { WriteParts } from './node.js';
import { createOptions } from './options.js';
import { changeRefcountOrder } from './refcount-width.js';
import { completeTable, type SnapshotList } from './snapshot-edit.js';
import type { Snapshot } from './snapshots.js';

/** Version 2 has no other width of refcounts: 16 bits. */
const V2_REFCOUNT_ORDER = 4;
const MAX_V2_VM_STATE = 2 ** 32 - 1;

const AMENDABLE = [
  'compat',
  'size',
  'backing_file',
  'backing_fmt',
  'lazy_refcounts',
  'refcount_bits',
  'data_file',
  'data_file_raw',
];

export const amendOptions: readonly OptionDeclaration[] = [
  ...AMENDABLE.map((name) => createOptions.find((option) => option.name === name)!),
  { name: 'encrypt.state', type: 'string', help: 'Select new state of affected keyslots (active/inactive)' },
  {
    name: 'encrypt.new-secret',
    type: 'string',
    help: 'New secret to set in the matching keyslots. Empty string to erase',
  },
  { name: 'encrypt.old-secret', type: 'string', help: 'Select all keyslots that match this password' },
  { name: 'encrypt.keyslot', type: 'number', help: 'Select a single keyslot to modify explicitly' },
  { name: 'encrypt.iter-time', type: 'number', help: 'Time to spend in PBKDF in milliseconds' },
];

interface Changes {
  readonly version: 2 | 3;
  readonly refcountOrder: number;
  readonly lazy: boolean;
  readonly dataFile: string | undefined;
  readonly dataFileRaw: boolean | undefined;
  readonly size: number | undefined;
}

const invalid = (text: string, hint?: string) =>
  new ImageError('invalid', text, hint === undefined ? {} : { hint });

function versionOf(compat: unknown, present: 2 | 3): 2 | 3 {
  if (compat === undefined) return present;
  if (compat === '0.10' || compat === 'v2') return 2;
  if (compat === '1.1' || compat === 'v3') return 3;
  throw invalid(`Unknown compatibility level ${String(compat)}`);
}

/** What is asked for, checked in the reference's order. */
function changesOf(options: OptionValues, { image }: WriteParts): Changes {
  const { header, geometry } = image;
  const version = versionOf(options.compat, header.version);
  if (Object.keys(options).some((name) => name.startsWith('encrypt.'))) {
    throw invalid("Can't amend encryption options - encryption not present");
  }
  let refcountOrder = geometry.refcountOrder;
  if (options.refcount_bits !== undefined) {
    refcountOrder = Math.log2(options.refcount_bits as number);
    if (!Number.isInteger(refcountOrder) || refcountOrder < 0 || refcountOrder > MAX_REFCOUNT_ORDER) {
      throw invalid('Refcount width must be a power of two and may not exceed 64 bits');
    }
  }
  if (options.data_file !== undefined && !geometry.externalData) {
    throw invalid('data-file can only be set for images that use an external data file');
  }
  const isRaw = (header.autoclear & Autoclear.dataFileRaw) !== 0n;
  if (options.data_file_raw === true && !isRaw) {
    throw invalid('data-file-raw cannot be set on existing images');
  }
  if (refcountOrder !== geometry.refcountOrder && refcountOrder !== V2_REFCOUNT_ORDER && version < 3) {
    throw invalid(
      'Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)',
    );
  }
  const { backing_file: file, backing_fmt: format } = options;
  const same = file === header.backing?.filename && format === header.backing?.format;
  if ((file !== undefined || format !== undefined) && !same) {
    throw invalid('Cannot amend the backing file', "You can use 'qemu-img rebase' instead.");
  }
  const lazy = (options.lazy_refcounts as boolean | undefined) ?? isLazy(header);
  if (lazy && !isLazy(header) && version < 3) {
    throw invalid(
      'Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)',
    );
  }
  return {
    version,
    refcountOrder,
    lazy,
    dataFile: options.data_file as string | undefined,
    dataFileRaw: options.data_file_raw as boolean | undefined,
    // The reference takes a size of 0 for none.
    size: (options.size as number | undefined) || undefined,
  };
}

/** Whether the image, otherwise amended, can be one of version 2. */
function checkDowngrade({ image }: WriteParts, snapshots: readonly Snapshot[], changes: Changes): void {
  const { header } = image;
  if (changes.refcountOrder !== V2_REFCOUNT_ORDER) {
    throw new ImageError('unsupported', 'compat=0.10 requires refcount_bits=16');
  }
  if (image.geometry.externalData) {
    throw new ImageError('unsupported', 'Cannot downgrade an image with a data file');
  }
  const size = changes.size ?? image.size;
  for (const { info } of snapshots) {
    if (info.vmStateSize > MAX_V2_VM_STATE || info.diskSize !== size) {
      throw new ImageError('unsupported', 'Internal snapshots prevent downgrade of image');
    }
  }
  // The way to compress matters only where something is compressed.
  const features = header.incompatible & ~(Incompatible.dirty | Incompatible.compression);
  if (features !== 0n) {
    throw new ImageError(
      'unsupported',
      `Cannot downgrade an image with incompatible features ${hex(Number(features))} set`,
    );
  }
}

/** Changes fields of the header, durably. */
async function writeHeader({ image }: WriteParts, change: Partial<Header>): Promise<void> {
  await image.writeback.run();
  await rewriteHeader(image, (header) => {
    Object.assign(header, change);
  });
  image.header = { ...image.header, ...change, extensions: image.header.extensions };
}

async function upgrade(parts: WriteParts, list: SnapshotList, context: AmendContext): Promise<void> {
  context.progress(0, 2);
  await completeTable(parts, list);
  context.progress(1, 2);
  await writeHeader(parts, { version: 3, refcountOrder: V2_REFCOUNT_ORDER });
  context.progress(2, 2);
}

async function downgrade(
  parts: WriteParts,
  snapshots: readonly Snapshot[],
  context: AmendContext,
): Promise<void> {
  await parts.image.markDirty(false);
  await expandZeros(parts, snapshots, context);
  await writeHeader(parts, {
    version: 2,
    incompatible: 0n,
    compatible: 0n,
    autoclear: 0n,
    compressionType: 0,
    unknownFields: new Uint8Array(0),
  });
}

function setDataFile(parts: WriteParts, name: string): Promise<void> {
  const extensions = parts.image.header.extensions.filter(({ type }) => type !== ExtensionType.dataFile);
  if (name !== '') extensions.push({ type: ExtensionType.dataFile, data: new TextEncoder().encode(name) });
  return writeHeader(parts, { extensions });
}

/** Sets or clears one bit of the compatible or autoclear features: one write within a sector. */
async function setFeature(
  { image }: WriteParts,
  set: 'compatible' | 'autoclear',
  bit: bigint,
  on: boolean,
): Promise<void> {
  const before = image.header[set];
  const bits = on ? before | bit : before & ~bit;
  if (bits === before) return;
  await image.writeback.run();
  await image.writeField64(set, bits);
  image.header[set] = bits;
  await image.file.flush();
}

/**
 * Progress of several operations in a row as that of one, as the reference guesses it: those to come will take as much as
 * those so far.
 */
class Operations {
  readonly #context: AmendContext;
  readonly #count: number;
  #index = 0;
  #before = 0;

  constructor(context: AmendContext, count: number) {
    this.#context = context;
    this.#count = count;
  }

  /** The context for the next one. */
  next(): AmendContext {
    const index = this.#index++;
    const before = this.#before;
    const progress = (done: number, total: number) => {
      this.#before = before + total;
      const left = Math.floor((this.#before * (this.#count - index - 1)) / (index + 1));
      this.#context.progress(before + done, this.#before + left);
    };
    return { ...this.#context, progress };
  }
}

/** See AmendFacet. */
export async function amend(
  parts: WriteParts,
  list: SnapshotList,
  options: OptionValues,
  context: AmendContext,
): Promise<void> {
  const { image } = parts;
  const snapshots = list.get();
  image.checkAlive();
  const changes = changesOf(options, parts);
  const before = image.header.version;
  const otherWidth = changes.refcountOrder !== image.geometry.refcountOrder;
  const operations = new Operations(context, Number(changes.version !== before) + Number(otherWidth));
  if (changes.version < before) checkDowngrade(parts, snapshots, changes);
  // Up first: what follows may need it. Down last: what prevents it may be gone by then.
  if (changes.version > before) await upgrade(parts, list, operations.next());
  if (otherWidth) await changeRefcountOrder(parts, changes.refcountOrder, operations.next());
  if (changes.dataFileRaw === false) await setFeature(parts, 'autoclear', Autoclear.dataFileRaw, false);
  if (changes.dataFile !== undefined) await setDataFile(parts, changes.dataFile);
  if (changes.lazy !== isLazy(image.header)) {
    await image.markDirty(false);
    await setFeature(parts, 'compatible', Compatible.lazyRefcounts, changes.lazy);
  }
  if (changes.size !== undefined && changes.size !== image.size) await context.resize(changes.size);
  if (changes.version < before) await downgrade(parts, list.get(), operations.next());
}
