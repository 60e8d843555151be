/** The snapshot table as the checker sees it: read with all its faults, and written anew where these are repaired. */
import { breathe, type CheckState, checkFailed } from './check-image.js';
import type { TableCounter } from './check-tables.js';
import { cString } from './header.js';
import {
  headerOffset,
  MAX_FILE_BYTES,
  MAX_L1_BYTES,
  MAX_SNAPSHOT_EXTRA_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  NO_ICOUNT,
  SnapshotEntry,
  SnapshotExtra,
} from './layout.js';

/** What version 3 demands of the extra data: the large state size and the disk size. */
const REQUIRED_EXTRA = 16;

interface Snapshot {
  readonly l1At: number;
  readonly l1Entries: number;
  readonly id: string;
  readonly name: string;
  /** The entry without extra data, id and name. */
  readonly fixed: ReturnType<typeof SnapshotEntry.decode>;
  readonly extra: Uint8Array;
  /** Id and name as they are stored. */
  readonly text: Uint8Array;
}

export interface SnapshotTable {
  readonly at: number;
  /** Bytes that the table takes now. */
  readonly length: number;
  readonly snapshots: readonly Snapshot[];
  /** Repairs that writing the table anew brings about; 0: it stays. */
  readonly repairs: number;
  /** All that these do is to leave out the last snapshots: what stays is good where it is. */
  readonly onlyShorter: boolean;
}

/** Reads the table. Without repair, too many snapshots or too much extra data end the check with the reference's error. */
export async function readSnapshotTable(state: CheckState): Promise<SnapshotTable> {
  const { header, context, result } = state;
  const repair = context.repair.errors;
  if (!header.snapshotsPlaced) {
    context.report('qemu-img: ERROR snapshot table offset invalid');
    throw checkFailed('corrupt', 'EINVAL');
  }
  let count = header.snapshotCount;
  let repairs = 0;
  let discarded = 0;
  if (count > MAX_SNAPSHOTS) {
    const over = count - MAX_SNAPSHOTS;
    if (!repair) {
      context.report('qemu-img: ERROR snapshot table too large');
      context.report(`You can force-remove all ${over} overhanging snapshots with qemu-img check -r all`);
      throw checkFailed('limit', 'EFBIG');
    }
    context.report(`Discarding ${over} overhanging snapshots`);
    repairs += over;
    discarded += over;
    count = MAX_SNAPSHOTS;
  }
  const snapshots: Snapshot[] = [];
  const incomplete: number[] = [];
  const reader = new TableReader(state, header.snapshotsOffset);
  let length = 0;
  /** What the entries so far take when they are written anew. */
  let encoded = 0;
  for (let index = 0; index < count; index++) {
    if (index % 1024 === 0) await breathe(context.signal);
    const start = Math.ceil(length / 8) * 8;
    const fixed = SnapshotEntry.decode(await reader.bytes(start, SnapshotEntry.size));
    if (fixed.extraDataSize > MAX_SNAPSHOT_EXTRA_BYTES) {
      if (!repair) {
        context.report(
          `qemu-img: ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry ${index}`,
        );
        context.report('You can force-remove this extra metadata with qemu-img check -r all');
        throw checkFailed('limit', 'EFBIG');
      }
      context.report(
        `Discarding too much extra metadata in snapshot table entry ${index} (${fixed.extraDataSize} > ${MAX_SNAPSHOT_EXTRA_BYTES})`,
      );
      repairs += 1;
    }
    const extraLength = Math.min(fixed.extraDataSize, MAX_SNAPSHOT_EXTRA_BYTES);
    const extra = new Uint8Array(await reader.bytes(start + SnapshotEntry.size, extraLength));
    const textAt = start + SnapshotEntry.size + fixed.extraDataSize;
    const text = new Uint8Array(await reader.bytes(textAt, fixed.idSize + fixed.nameSize));
    length = textAt + text.length;
    encoded = Math.ceil(encoded / 8) * 8;
    encoded += SnapshotEntry.size + Math.max(extraLength, SnapshotExtra.size) + text.length;
    if (encoded > MAX_SNAPSHOT_TABLE_BYTES) {
      const over = count - index;
      if (!repair) {
        context.report('qemu-img: ERROR failed to read the snapshot table: Snapshot table is too big');
        context.report(`You can force-remove all ${over} overhanging snapshots with qemu-img check -r all`);
        throw checkFailed('limit', 'EFBIG');
      }
      context.report(`Discarding ${over} overhanging snapshots (snapshot table is too big)`);
      repairs += over;
      discarded += over;
      length = start;
      break;
    }
    if (header.version >= 3 && fixed.extraDataSize < REQUIRED_EXTRA) incomplete.push(index);
    snapshots.push({
      l1At: Number(fixed.l1TableOffset),
      l1Entries: fixed.l1Size,
      id: cString(text.subarray(0, fixed.idSize)),
      name: cString(text.subarray(fixed.idSize)),
      fixed,
      extra,
      text,
    });
  }
  for (const index of incomplete) {
    context.report(`${repair ? 'Repairing' : 'ERROR'} snapshot table entry ${index} is incomplete`);
    if (repair) repairs += 1;
    else result.corruptions += 1;
  }
  return { at: header.snapshotsOffset, length, snapshots, repairs, onlyShorter: repairs === discarded };
}

/** Small reads out of a window that moves forward. */
class TableReader {
  readonly #state: CheckState;
  readonly #base: number;
  #window = new Uint8Array(256 << 10);
  #at = -1;

  constructor(state: CheckState, base: number) {
    this.#state = state;
    this.#base = base;
  }

  /** Valid until the next call. */
  async bytes(at: number, length: number): Promise<Uint8Array> {
    if (this.#at < 0 || at < this.#at || at + length > this.#at + this.#window.length) {
      this.#at = at;
      const { file } = this.#state;
      if (this.#base + at < file.size) await file.read(this.#base + at, this.#window);
      else this.#window.fill(0);
    }
    return this.#window.subarray(at - this.#at, at - this.#at + length);
  }
}

/** Counts all that the snapshots refer to, and the table itself. */
export async function countSnapshots(
  state: CheckState,
  table: SnapshotTable,
  counter: TableCounter,
): Promise<void> {
  const { context, result, header } = state;
  const { snapshots } = table;
  if (header.geometry.externalData && snapshots.length > 0) {
    context.report(`ERROR ${snapshots.length} snapshots in image with data file`);
    result.corruptions += 1;
  }
  const clusterSize = BigInt(header.geometry.clusterSize);
  for (const { l1At, l1Entries, id, name, fixed } of snapshots) {
    await breathe(context.signal);
    // exact: a number has lost the low bits of what is far beyond any file
    if (fixed.l1TableOffset % clusterSize !== 0n) {
      context.report(
        `ERROR snapshot ${id} (${name}) l1_offset=0x${fixed.l1TableOffset.toString(16)}: L1 table is not cluster aligned; snapshot table entry corrupted`,
      );
      result.corruptions += 1;
    } else if (l1Entries > MAX_L1_BYTES / 8) {
      context.report(
        `ERROR snapshot ${id} (${name}) l1_size=0x${l1Entries.toString(16)}: L1 table is too large; snapshot table entry corrupted`,
      );
      result.corruptions += 1;
    } else {
      const region = { at: l1At, length: l1Entries * 8 };
      if (region.length > 0 && fixed.l1TableOffset + BigInt(region.length) > MAX_FILE_BYTES) {
        // Nothing may be taken for a leak only because it cannot be read what refers to it.
        counter.count(region.at, region.length, fixed.l1TableOffset.toString(16));
        context.report('ERROR: I/O error in check_refcounts_l1');
        throw checkFailed('corrupt', 'EIO');
      }
      await counter.countL1(region, false);
    }
  }
  counter.count(table.at, table.length);
}

/** The table in the form that version 3 demands: each entry with at least all the extra data that is known. */
export function encodeSnapshotTable(state: CheckState, { snapshots }: SnapshotTable): Uint8Array {
  const parts: Uint8Array[] = [];
  for (const { fixed, extra, text } of snapshots) {
    const known = SnapshotExtra.decode(
      SnapshotExtra.encode({
        vmStateSizeLarge: BigInt(fixed.vmStateSize),
        diskSize: BigInt(state.header.size),
        icount: NO_ICOUNT,
      }),
    );
    const whole = new Uint8Array(Math.max(extra.length, SnapshotExtra.size));
    SnapshotExtra.encodeInto(known, whole);
    whole.set(extra);
    // a field that is there in part only says nothing
    if (extra.length < SnapshotExtra.size) {
      SnapshotExtra.encodeInto(known, whole);
      whole.set(extra.subarray(0, Math.floor(extra.length / 8) * 8));
    }
    const entry = SnapshotEntry.encode({ ...fixed, extraDataSize: whole.length });
    const length = entry.length + whole.length + text.length;
    const padded = new Uint8Array(Math.ceil(length / 8) * 8);
    padded.set(entry);
    padded.set(whole, entry.length);
    padded.set(text, entry.length + whole.length);
    parts.push(padded);
  }
  return new Uint8Array(Buffer.concat(parts));
}

/** The two header fields that name the table, which are next to each other. */
export function encodeSnapshotPointer(
  count: number,
  at: number,
): { readonly at: number; readonly bytes: Uint8Array } {
  const bytes = new Uint8Array(12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, count);
  view.setBigUint64(4, BigInt(at));
  return { at: headerOffset.snapshotCount, bytes };
}
