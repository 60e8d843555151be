/** Doing what the log says, after a crash. */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import type { Headers } from './header.js';
import { invalid, LOG_SECTOR, MIB, NO_GUID, REGION_TABLE_AT } from './layout.js';
import { type LogChange, type LogEntry, LogReader } from './log.js';
import type { Region } from './regions.js';

/**
 * How much longer than it is a log may make the file: the blocks that were allocated since the file's length was last on
 * stable storage, of which there are at most as many as a log has room for entries of.
 */
const MAX_GROWTH = 2n ** 47n;

/** Below are the file type identifier and the headers, which never go through the log (2.3). */
const FIRST_LOGGED = REGION_TABLE_AT[0];

/**
 * Replays the log where it is not empty, and empties it. True where there was something to replay. A read-only image is
 * refused: its metadata is not what the file says.
 *
 * @throws ImageError `read-only`; `corrupt` for a log that asks for what cannot be, before anything is changed.
 */
export async function replayLog(
  file: Storage,
  headers: Headers,
  region: Region,
  writable: boolean,
): Promise<boolean> {
  if (headers.logEmpty || region.length === 0) return false;
  const reader = new LogReader(file, region, headers.fields.logGuid);
  const entries = await reader.active();
  if (entries.length === 0) {
    // The reference opens such images: it leaves the GUID when it closes a file whose log it has done with.
    return false;
  }
  if (!writable) throw needsReplay(file.filename);
  const end = await checkChanges(reader, entries, file, region);
  const before = file.size;
  if (end > before) await file.truncate(end);
  for (const entry of entries) {
    for await (const change of reader.changes(entry)) {
      if (change.kind === 'data') await file.write(Number(change.at), change.data);
      else {
        // What has just been added is zeros as it is.
        const length = Math.min(before, Number(change.at + change.length)) - Number(change.at);
        if (length > 0) await file.zero({ at: Number(change.at), length }, { unmap: true });
      }
    }
  }
  await file.flush();
  await headers.update({ logGuid: NO_GUID });
  return true;
}

/** The length that the file must have. */
async function checkChanges(
  reader: LogReader,
  entries: readonly LogEntry[],
  file: Storage,
  region: Region,
): Promise<number> {
  const { filename } = file;
  let end = BigInt(file.size);
  for (const { flushedFileOffset, lastFileOffset } of entries) {
    if (flushedFileOffset > BigInt(file.size)) throw invalid(filename, 'file was truncated');
    if (lastFileOffset > end) end = lastFileOffset;
  }
  if (end > BigInt(file.size) + MAX_GROWTH) throw invalid(filename, 'last file offset');
  if (end > BigInt(file.size)) end = ((end + BigInt(MIB) - 1n) / BigInt(MIB)) * BigInt(MIB);
  for (const entry of entries) {
    for await (const change of reader.changes(entry)) {
      const from = change.at;
      const to = from + lengthOf(change);
      const inLog = from < BigInt(region.at + region.length) && to > BigInt(region.at);
      if (from < BigInt(FIRST_LOGGED) || to > end || inLog) throw invalid(filename, 'log descriptor');
    }
  }
  return Number(end);
}

function lengthOf(change: LogChange): bigint {
  return change.kind === 'data' ? BigInt(LOG_SECTOR) : change.length;
}

function needsReplay(filename: string): ImageError {
  return new ImageError(
    'read-only',
    `VHDX image file '${filename}' opened read-only, but contains a log that needs to be replayed`,
    { errno: 'EPERM', hint: `To replay the log, run:\nqemu-img check -r all '${filename}'`, check: 'log' },
  );
}
