/** Compressed grains: a marker (guest sector, length), then a zlib stream. */
import { inflateZlib } from '../../codec/deflate.js';
import { errnoText, ImageError } from '../../error.js';
import type { SparseExtent } from './extent.js';
import { GrainMarker, SECTOR } from './layout.js';

/**
 * A read of the access path starts all its grains at once, thousands where grains are small. So many, with buffers of so
 * many bytes, are under way at a time, whatever the image; others wait.
 */
const MAX_COUNT = 64;
const MAX_BYTES = 16 * 1024 * 1024;

const waiting: { readonly weight: number; readonly start: () => void }[] = [];
let count = 0;
let bytes = 0;

/** Takes a place for buffers of `weight` bytes if there is one; alone, the heaviest has one. */
function take(weight: number): boolean {
  if (count > 0 && (count >= MAX_COUNT || bytes + weight > MAX_BYTES)) return false;
  count++;
  bytes += weight;
  return true;
}

/** Runs `work`, whose buffers have `weight` bytes, in turn. */
async function inTurn(weight: number, work: () => Promise<void>): Promise<void> {
  if (waiting.length > 0 || !take(weight)) {
    // Whoever makes room takes the place in this one's name.
    await new Promise<void>((start) => waiting.push({ weight, start }));
  }
  try {
    await work();
  } finally {
    count--;
    bytes -= weight;
    while (waiting.length > 0 && take(waiting[0]!.weight)) waiting.shift()!.start();
  }
}

function broken(extent: SparseExtent, at: number, cause?: unknown): ImageError {
  const context = { path: extent.storage.filename, offset: at, errno: 'EINVAL' };
  return new ImageError('corrupt', errnoText('EINVAL'), context, cause);
}

/** The stored stream of the grain at a host sector; `next` is the sector of the grain after it, where that is known. */
async function readStream(
  extent: SparseExtent,
  sector: number,
  next: number | undefined,
): Promise<Uint8Array> {
  const { storage, grain } = extent;
  const at = sector * SECTOR;
  if (!extent.markers) {
    const stream = Buffer.allocUnsafeSlow(grain);
    await storage.read(at, stream);
    return stream;
  }
  // Grains mostly follow each other: then one read fetches marker and stream, and no more.
  const gap = next === undefined ? 0 : (next - sector) * SECTOR;
  const likely = gap > 0 && gap <= grain + SECTOR ? gap : grain + SECTOR;
  const head = Buffer.allocUnsafeSlow(likely);
  await storage.read(at, head);
  const { size } = GrainMarker.decode(head);
  // Deflate makes nothing twice as long: more is damage.
  if (size === 0 || size > 2 * grain) throw broken(extent, at);
  if (GrainMarker.size + size <= likely) return head.subarray(GrainMarker.size, GrainMarker.size + size);
  const whole = Buffer.allocUnsafeSlow(size);
  whole.set(head.subarray(GrainMarker.size));
  await storage.read(at + likely, whole.subarray(likely - GrainMarker.size));
  return whole;
}

/**
 * Fills `into` with the guest bytes from `skip` on of the compressed grain at a host sector. Only the last grain of an
 * extent may be stored short, and what is asked of it must be there. Throws `corrupt`.
 */
export function readPacked(
  extent: SparseExtent,
  sector: number,
  next: number | undefined,
  skip: number,
  into: Uint8Array,
): Promise<void> {
  return inTurn(3 * extent.grain, async () => {
    const stream = await readStream(extent, sector, next);
    const entire = skip === 0 && into.byteLength === extent.grain;
    const whole = entire ? into : Buffer.allocUnsafeSlow(extent.grain);
    let produced: number;
    try {
      produced = await inflateZlib(stream, whole);
    } catch (error) {
      if (error instanceof ImageError && error.kind === 'corrupt') {
        throw broken(extent, sector * SECTOR, error);
      }
      throw error;
    }
    if (produced < skip + into.byteLength) throw broken(extent, sector * SECTOR);
    if (!entire) into.set(whole.subarray(skip, skip + into.byteLength));
  });
}
