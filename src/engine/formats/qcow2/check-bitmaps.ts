/** Counts what the persistent bitmaps refer to: their directory, their tables, their clusters. */
import { breathe, type CheckState, checkFailed, readTable } from './check-image.js';
import type { TableCounter } from './check-tables.js';
import {
  BitmapEntry,
  bitmapCluster,
  MAX_BITMAP_DIRECTORY_BYTES,
  MAX_BITMAP_TABLE_ENTRIES,
  MAX_BITMAPS,
} from './layout.js';

export async function countBitmaps(state: CheckState, counter: TableCounter): Promise<void> {
  const { file, header, context, result } = state;
  if (header.bitmaps === undefined || header.bitmaps.count === 0) return;
  const { directory, count } = header.bitmaps;
  counter.count(directory.at, directory.length);
  if (count > MAX_BITMAPS || directory.length > MAX_BITMAP_DIRECTORY_BYTES) {
    result.corruptions += 1;
    return;
  }
  const there = Math.max(0, Math.min(directory.length, file.size - directory.at));
  const bytes = new Uint8Array(there);
  await file.read(directory.at, bytes);
  const { clusterSize } = header.geometry;
  for (let at = 0; at + BitmapEntry.size <= there; ) {
    await breathe(context.signal);
    const entry = BitmapEntry.decode(bytes, at);
    at += Math.ceil((BitmapEntry.size + entry.extraDataSize + entry.nameSize) / 8) * 8;
    const region = { at: Number(entry.tableOffset), length: entry.tableSize * 8 };
    counter.count(region.at, region.length);
    if (entry.tableSize > MAX_BITMAP_TABLE_ENTRIES) {
      result.corruptions += 1;
      continue;
    }
    const table = await readTable(file, region);
    for (let index = 0; index < table.length / 2; index++) {
      const cluster = bitmapCluster(table, index);
      if (cluster.kind === 'invalid' || (cluster.kind === 'data' && cluster.at % clusterSize !== 0)) {
        throw checkFailed('corrupt', 'EINVAL');
      } else if (cluster.kind === 'data') counter.count(cluster.at, clusterSize);
    }
  }
}
