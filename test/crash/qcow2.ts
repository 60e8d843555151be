/** qcow2 images for the crash suite: made in memory, opened on recorded storages, and looked at in crash states. */
import { qcow2 } from '../../src/engine/formats/qcow2/index.js';
import { headerOffset, SnapshotEntry, SnapshotExtra } from '../../src/engine/formats/qcow2/layout.js';
import type { CheckResult, FormatDriver } from '../../src/engine/node/driver.js';
import { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import type { Storage } from '../../src/engine/storage/storage.js';
import type { OpenedImage } from './invariants.js';
import type { PagedStorage } from './paged.js';

/** Names of the files of an image in a log. */
export const IMAGE = 'image';
export const DATA = 'data';

/** The image and what lies below it. The backing file is never written and has no part in the log. */
export interface Files {
  readonly image: Storage;
  readonly data?: Storage | undefined;
  readonly backing?: Storage | undefined;
}

/** Creates an image; `create` runs on the storages given, which may be recorded. */
export async function createOn(
  files: Files,
  size: number,
  options: OptionValues,
  driver: FormatDriver = qcow2,
): Promise<void> {
  const child = async (): Promise<Storage> => {
    if (files.data === undefined) throw new Error('no data file expected');
    return keepOpen(files.data);
  };
  await driver.create!({
    file: keepOpen(files.image),
    filename: IMAGE,
    size,
    options,
    ...(files.backing === undefined ? {} : { backing: { filename: 'backing', format: 'raw' } }),
    createExtra: child,
    openExtra: child,
  });
}

export async function openOn(
  files: Files,
  options: { readonly writable: boolean; readonly forCheck?: boolean; readonly driver?: FormatDriver },
): Promise<ImageNode> {
  const { writable, forCheck = false, driver = qcow2 } = options;
  const file = keepOpen(files.image);
  const format = await driver.open({
    file,
    writable,
    options: {},
    forCheck,
    metadataOnly: false,
    openChild: async (_child, recorded) =>
      recorded === undefined || files.data === undefined ? undefined : keepOpen(files.data),
    warn: () => {},
  });
  const backing = files.backing === undefined ? undefined : rawNode(files.backing);
  return new ImageNode({ filename: IMAGE, path: undefined, driver, format, file, backing, writable });
}

/** A raw layer, by hand, so that nothing but qcow2 is under test here. */
function rawNode(storage: Storage): ImageNode {
  return new ImageNode({
    filename: 'backing',
    path: undefined,
    driver: { ...qcow2, name: 'raw' },
    format: {
      size: storage.size,
      unit: 1,
      children: new Map(),
      startsAsZero: false,
      map: ({ at, length }) => ({ kind: 'data', length, storage, at }),
      close: async () => {},
      info: () => ({}),
    },
    file: storage,
    backing: undefined,
    writable: false,
  });
}

/** Closing an image must not close a storage that the test still needs. */
function keepOpen(storage: Storage): Storage {
  return new Proxy(storage, {
    get(target, property) {
      if (property === 'close') return async () => {};
      const value = Reflect.get(target, property, target) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

/** Whether a version 3 image is marked dirty: whoever writes it counts anew first. */
export function isDirty(image: PagedStorage): boolean {
  const head = new Uint8Array(80);
  image.get(0, head);
  return head[7] === 3 && (head[79]! & 1) !== 0;
}

/** A crash state, opened as a program would that only reads; one that is marked dirty is repaired first, as a writer does. */
export async function openCrashed(
  files: ReadonlyMap<string, PagedStorage>,
  backing: Storage | undefined,
  options: { readonly forCheck?: boolean; readonly driver?: FormatDriver } = {},
): Promise<OpenedImage> {
  const image = files.get(IMAGE)!;
  const isQcow2 = options.driver === undefined || options.driver === qcow2;
  const dirty = isQcow2 && isDirty(image);
  const node = await openOn(
    { image, data: files.get(DATA), backing },
    { writable: dirty && options.forCheck !== true, ...options },
  );
  return {
    size: node.size,
    async read(at, length) {
      const into = new Uint8Array(length);
      await node.read(at, into);
      return into;
    },
    ...(node.format.checker === undefined ? {} : { check: () => checkOf(node) }),
    close: () => node.close(),
  };
}

async function checkOf(node: ImageNode): Promise<{ result: CheckResult; lines: readonly string[] }> {
  const lines: string[] = [];
  const repair = { leaks: false, errors: false };
  const result = await node.format.checker!.check({ repair, report: (line) => lines.push(line) });
  return { result, lines };
}

/**
 * Takes an internal snapshot of a closed image, by hand: the L1 table copied, every refcount below it raised, the copied
 * flags cleared, a snapshot table written. Only for images of one L2 table's reach a refcount block, 16-bit refcounts.
 */
export function addSnapshot(image: PagedStorage, name: string): void {
  const bytes = Buffer.from(image.bytes());
  const cluster = 2 ** bytes.readUInt32BE(20);
  const offset = (at: number): number => Number(bytes.readBigUInt64BE(at) & 0x00fffffffffffe00n);
  const l1At = offset(headerOffset.l1TableOffset);
  const l1Entries = bytes.readUInt32BE(headerOffset.l1Size);
  const table = offset(headerOffset.refcountTableOffset);
  const refcountAt = (index: number): number => {
    const block = offset(table + Math.floor(index / (cluster / 2)) * 8);
    if (block === 0) throw new Error('no refcount block for the snapshot');
    return block + (index % (cluster / 2)) * 2;
  };
  const raise = (index: number): void => {
    bytes.writeUInt16BE(bytes.readUInt16BE(refcountAt(index)) + 1, refcountAt(index));
  };
  const clearCopied = (at: number): void => {
    bytes[at]! &= 0x7f;
  };
  for (let l1 = l1At; l1 < l1At + l1Entries * 8; l1 += 8) {
    const l2At = offset(l1);
    if (l2At === 0) continue;
    raise(l2At / cluster);
    for (let l2 = l2At; l2 < l2At + cluster; l2 += 8) {
      const entry = bytes.readBigUInt64BE(l2);
      if ((entry & (1n << 62n)) !== 0n) {
        const shift = 62n - BigInt(Math.log2(cluster) - 8);
        const at = Number(entry & ((1n << shift) - 1n));
        const sectors = Number((entry >> shift) & ((1n << (62n - shift)) - 1n)) + 1;
        const end = (Math.floor(at / 512) + sectors) * 512;
        for (let index = Math.floor(at / cluster); index * cluster < end; index++) raise(index);
      } else if (offset(l2) !== 0) raise(offset(l2) / cluster);
      clearCopied(l2);
    }
    clearCopied(l1);
  }
  const end = Math.ceil(bytes.length / cluster) * cluster;
  const l1Clusters = Math.ceil((l1Entries * 8) / cluster);
  const l1Copy = Buffer.alloc(l1Clusters * cluster);
  bytes.copy(l1Copy, 0, l1At, l1At + l1Entries * 8);
  const guest = bytes.readBigUInt64BE(headerOffset.size);
  const extra = SnapshotExtra.encode({ diskSize: guest, icount: 0xffffffffffffffffn });
  const text = Buffer.from(`1${name}`);
  const entry = SnapshotEntry.encode({
    l1TableOffset: BigInt(end),
    l1Size: l1Entries,
    idSize: 1,
    nameSize: name.length,
    extraDataSize: extra.length,
  });
  const snapshotTable = Buffer.concat([entry, extra, text]);
  const tableAt = end + l1Copy.length;
  for (let at = end; at < tableAt + snapshotTable.length; at += cluster) raise(at / cluster);
  bytes.writeUInt32BE(1, headerOffset.snapshotCount);
  bytes.writeBigUInt64BE(BigInt(tableAt), headerOffset.snapshotCount + 4);
  image.put(0, bytes);
  image.put(end, l1Copy);
  image.put(tableAt, snapshotTable);
}
