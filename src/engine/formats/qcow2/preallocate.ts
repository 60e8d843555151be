/** Preallocation: every guest cluster gets a host cluster before there is data for it. */
import type { Preallocation } from '../../storage/storage.js';
import { clusterKind, Kind, setCluster } from './layout.js';
import type { WriteParts } from './node.js';

/**
 * Maps the guest bytes [from, to) to host clusters, in order. `falloc` and `full` also take (and for `full` write) the
 * space of the host file. The caller flushes.
 */
export async function preallocate(
  parts: WriteParts,
  from: number,
  to: number,
  mode: Exclude<Preallocation, 'off'>,
): Promise<void> {
  const { image, tables, refcounts } = parts;
  const { geometry, file, dataFile } = image;
  const { clusterSize, l2Entries, l2Words } = geometry;
  const end = Math.ceil(to / clusterSize);
  const hostMode = mode === 'metadata' ? 'off' : mode;
  let fileEnd = 0;
  for (let cluster = Math.floor(from / clusterSize); cluster < end; ) {
    const index = Math.floor(cluster / l2Entries);
    const table = tables.writable(index);
    if (table instanceof Promise) {
      await table;
      continue;
    }
    const entry = cluster % l2Entries;
    const free = (at: number) => clusterKind(table.table, at * l2Words, geometry) === Kind.unallocated;
    if (!free(entry)) {
      cluster++;
      continue;
    }
    let count = 1;
    const most = Math.min(l2Entries - entry, end - cluster);
    while (count < most && free(entry + count)) count++;
    let host = cluster * clusterSize;
    if (!geometry.externalData) {
      const run = refcounts.allocate(count);
      if (run instanceof Promise) {
        await run;
        continue;
      }
      host = run.at;
      count = run.count;
      fileEnd = Math.max(fileEnd, host + count * clusterSize);
    }
    for (let i = 0; i < count; i++) setCluster(table.table, (entry + i) * l2Words, host + i * clusterSize);
    tables.changed(table, entry, count);
    cluster += count;
    if (geometry.externalData) continue;
    // A place that was in use before holds old bytes; beyond the end there are zeros.
    const old = Math.min(file.size, host + count * clusterSize) - host;
    if (old > 0) await file.zero({ at: host, length: old });
    if (hostMode !== 'off' && fileEnd > file.size) await file.truncate(fileEnd, hostMode);
  }
  if (dataFile !== undefined) {
    const size = Math.ceil(to / geometry.subclusterSize) * geometry.subclusterSize;
    if (dataFile.size < size) await dataFile.truncate(size, hostMode);
  } else if (fileEnd > file.size) await file.truncate(fileEnd);
}
