/** Memory at addresses that O_DIRECT accepts. */
import { libc } from './libc.js';

/** Whether the buffer's first byte is at a multiple of `alignment`; false where addresses cannot be told. */
export function isAligned(buffer: Uint8Array, alignment: number): boolean {
  if (alignment <= 1) return true;
  const c = libc();
  return c !== undefined && buffer.length > 0 && Number(c.address(buffer) % BigInt(alignment)) === 0;
}

/** Uninitialised memory of `length` bytes whose address is a multiple of `alignment`. */
export function allocateAligned(length: number, alignment: number): Uint8Array {
  const block = Buffer.allocUnsafeSlow(length + alignment);
  const c = libc();
  if (c === undefined) return block.subarray(0, length);
  const over = Number(c.address(block) % BigInt(alignment));
  const skip = over === 0 ? 0 : alignment - over;
  return block.subarray(skip, skip + length);
}
