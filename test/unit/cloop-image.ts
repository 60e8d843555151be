/** Compressed loop images made by hand. */
import { deflateSync } from 'node:zlib';

const SCRIPT =
  '#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\nexit $?\n';

/** `guest` in blocks of `blockSize`; the streams may be others than its blocks'. */
export function cloopImage(guest: Uint8Array, blockSize: number, streams?: readonly Uint8Array[]): Buffer {
  const count = Math.ceil(guest.length / blockSize);
  const packed =
    streams ??
    Array.from({ length: count }, (_, i) => {
      const block = Buffer.alloc(blockSize);
      block.set(guest.subarray(i * blockSize, (i + 1) * blockSize));
      return deflateSync(block);
    });
  const head = Buffer.alloc(136 + (packed.length + 1) * 8);
  head.write(SCRIPT, 'latin1');
  head.writeUInt32BE(blockSize, 128);
  head.writeUInt32BE(packed.length, 132);
  let at = head.length;
  for (const [i, stream] of packed.entries()) {
    head.writeBigUInt64BE(BigInt(at), 136 + i * 8);
    at += stream.length;
  }
  head.writeBigUInt64BE(BigInt(at), 136 + packed.length * 8);
  return Buffer.concat([head, ...packed]);
}
