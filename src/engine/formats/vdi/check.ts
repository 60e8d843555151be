/** `check`: no block is used twice, none lies beyond what the image may have, and the header counts them rightly. Nothing is repaired. */

import { ImageError } from '../../error.js';
import type { CheckContext, CheckFacet, CheckResult } from '../../node/driver.js';
import { type EntryTable, SparseBits } from '../entry-table.js';
import { BLOCK, DISCARDED } from './layout.js';

/** Entries past the end of the file are told one by one up to this many. */
const MAX_MISSING_LINES = 65_536;

export function vdiChecker(
  table: EntryTable,
  blocksAllocated: () => number,
  quiesce: () => Promise<void>,
): CheckFacet {
  return {
    async check({ report, signal, progress }: CheckContext): Promise<CheckResult> {
      await quiesce();
      const seen = new SparseBits();
      let corruptions = 0;
      let allocated = 0;
      const look = (index: number, entry: number) => {
        if (entry >= DISCARDED) return;
        if (entry >= table.count) {
          report(`ERROR: block index ${index} too large, is ${entry}`);
          corruptions++;
          return;
        }
        allocated++;
        if (seen.add(entry)) return;
        report(`ERROR: block index ${entry} also used by ${entry}`);
        corruptions++;
      };
      const end = await table.scan((entries, first, count) => {
        if (signal?.aborted) throw new ImageError('cancelled', 'Operation cancelled');
        for (let i = 0; i < count; i++) look(first + i, entries[i]!);
        progress?.(first * BLOCK, table.count * BLOCK);
      });
      // What the file does not have reads as zeros: block 0, again and again.
      const missing = table.count - end;
      if (missing <= MAX_MISSING_LINES) for (let index = end; index < table.count; index++) look(index, 0);
      else {
        const again = missing - (seen.add(0) ? 1 : 0);
        report(
          `ERROR: the block map ends after ${end} entries: block index 0 also used by 0 (${again} times)`,
        );
        corruptions += again;
        allocated += missing;
      }
      if (allocated !== blocksAllocated()) {
        report(`ERROR: allocated blocks mismatch, is ${allocated}, should be ${blocksAllocated()}`);
        corruptions++;
      }
      return { checkErrors: 0, corruptions, leaks: 0, corruptionsFixed: 0, leaksFixed: 0 };
    },
  };
}
