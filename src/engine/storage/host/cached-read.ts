/** Reading what the page cache holds, in this thread, without waiting for a disk: preadv2(2) with RWF_NOWAIT. */
import { errnoName, meansUnavailable } from './errno.js';
import { libc } from './libc.js';

const RWF_NOWAIT = 8;
/** struct iovec on 64-bit hosts: address and length. */
const iovec = new BigUint64Array(2);
const iovecBytes = new Uint8Array(iovec.buffer);

/**
 * Fills the start of `into` with bytes from offset `at` that are in memory; the count, 0 where the first byte is not (or the
 * file ends). Undefined where the host or the filesystem has no such reads.
 */
export function readCached(fd: number, at: number, into: Uint8Array): number | undefined {
  const c = libc();
  if (c?.preadv2 === undefined) return undefined;
  iovec[0] = c.address(into);
  iovec[1] = BigInt(into.byteLength);
  const count = c.preadv2(fd, iovecBytes, 1, at, RWF_NOWAIT);
  if (count >= 0) return count;
  return meansUnavailable(errnoName(c.errno())) ? undefined : 0;
}
