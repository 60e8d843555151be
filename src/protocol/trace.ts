/** Trace events: which there are, and which of them patterns mean. Names and forms are QEMU's where QEMU has the event. No imports. */

/** By name: when it is told, and the words of its line behind the name. */
export const traceEvents = {
  bdrv_open_common: 'A file, or the format on it, is being opened: bs, filename, flags, format_name.',
  bdrv_close: 'It is being closed: bs.',
  bdrv_co_preadv_part: 'A read, of guest bytes or of a file: bs, offset, bytes, flags.',
  bdrv_co_pwritev_part: 'A write: bs, offset, bytes, flags (0x20: compressed).',
  bdrv_co_pwrite_zeroes: 'A request for zeros: bs, offset, bytes, flags (0x4: host space may go).',
  bdrv_co_pdiscard: 'A discard: bs, offset, bytes.',
  bdrv_co_flush: 'A flush: bs.',
  bdrv_co_truncate: 'A file gets another length: bs, bytes, prealloc.',
  file_lock:
    'The locks of a file have changed: bs, filename, and as bits what it is used and not shared for.',
  file_lock_refused: 'A lock was not got: filename, and the lock that is in the way.',
  job_phase: 'A stage of the work begins: phase, and its extent as far as it is known.',
  qcow2_cache_get_read: 'A table is read into the cache: bs, is_l2_cache (0: refcounts), offset.',
  qcow2_cache_entry_flush: 'Tables are written back: bs, is_l2_cache, offset.',
  qcow2_l1_update: 'A part of the L1 table is written: bs, offset.',
  trace_dropped: 'So many events were left out, because their reader is too slow: events. Always enabled.',
} as const;

export type TraceEvent = keyof typeof traceEvents;

export const traceEventNames = Object.keys(traceEvents) as readonly TraceEvent[];

/** `*` stands for any characters, `?` for one. No regular expression: patterns come from clients, and some take those for ever. */
function matches(name: string, pattern: string): boolean {
  let at = 0;
  let next = 0;
  /** Where to go on when what follows the last `*` does not fit: that one takes one character more. */
  let star = -1;
  let taken = 0;
  while (at < name.length) {
    if (pattern[next] === '*') {
      star = next++;
      taken = at;
    } else if (next < pattern.length && (pattern[next] === '?' || pattern[next] === name[at])) {
      next++;
      at++;
    } else if (star >= 0) {
      next = star + 1;
      at = ++taken;
    } else return false;
  }
  while (pattern[next] === '*') next++;
  return next === pattern.length;
}

/**
 * Enables the events that a pattern means, or with a `-` in front disables them.
 * @returns the name that is none, where the pattern has no `*` and no event is meant.
 */
export function applyPattern(enabled: Set<TraceEvent>, pattern: string): string | undefined {
  const off = pattern.startsWith('-');
  const wanted = off ? pattern.slice(1) : pattern;
  const found = traceEventNames.filter((name) => matches(name, wanted));
  for (const name of found) {
    if (off) enabled.delete(name);
    else enabled.add(name);
  }
  return found.length === 0 && !wanted.includes('*') ? wanted : undefined;
}

/** What is said of a name that is none. */
export const unknownEvent = (name: string): string => `warning: trace event '${name}' does not exist`;
