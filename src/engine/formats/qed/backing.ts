/**
 * Changing what the header says of the backing file. Header and name fit one sector mostly, which a disk writes whole; a
 * longer name goes to a free place of the header clusters first, the header is switched over to that, and then back to the
 * usual place behind the header.
 */
import { ImageError } from '../../error.js';
import type { QedImage } from './image.js';
import { Feature, MAX_BACKING_NAME, QedHeader, SECTOR } from './layout.js';

/** Nothing may be dirty in memory. Throws as `FormatNode.changeBacking` says. */
export async function changeBacking(
  image: QedImage,
  filename: string | undefined,
  format: string | undefined,
): Promise<void> {
  const { file, header } = image;
  const refused = (kind: 'invalid' | 'unsupported' | 'no-space', text: string, errno: string) =>
    new ImageError(kind, text, { path: file.filename, errno });
  // With unknown compat features there may be something behind the header that nobody here knows of.
  if (filename !== undefined && header.compatFeatures !== 0n) {
    throw refused('unsupported', 'Operation not supported', 'ENOTSUP');
  }
  const name = Buffer.from(filename ?? '', 'utf8');
  const end = QedHeader.size + name.byteLength;
  if (end > image.headerBytes) throw refused('no-space', 'No space left on device', 'ENOSPC');
  // The reference writes what it cannot read any more.
  if (name.byteLength > MAX_BACKING_NAME) throw refused('invalid', 'Invalid argument', 'EINVAL');

  let features = header.features & ~(Feature.backingFile | Feature.backingFormatNoProbe);
  if (filename !== undefined) {
    features |= Feature.backingFile;
    if (format === 'raw') features |= Feature.backingFormatNoProbe;
  }
  const old = { at: header.backingFilenameOffset, length: header.backingFilenameSize };
  const switchTo = async (at: number) => {
    header.features = features;
    header.backingFilenameOffset = at;
    header.backingFilenameSize = name.byteLength;
    if (at !== QedHeader.size) await image.writeHeader();
    else await file.write(0, Buffer.concat([QedHeader.encode(header), name]));
    await file.flush();
  };
  await file.flush();
  if (end > SECTOR) {
    const detour = freePlace(name.byteLength, end, old, image.headerBytes);
    if (detour !== undefined) {
      await file.write(detour, name);
      await file.flush();
      await switchTo(detour);
      await file.write(QedHeader.size, name);
      await file.flush();
    }
  }
  await switchTo(QedHeader.size);
  image.backingName = filename === undefined || filename === '' ? undefined : filename;
}

/** Where in the header clusters `length` bytes meet neither the old name nor the new one's place, [header, end). */
function freePlace(
  length: number,
  end: number,
  old: { readonly at: number; readonly length: number },
  headerBytes: number,
): number | undefined {
  const oldEnd = Math.ceil((old.at + old.length) / SECTOR) * SECTOR;
  for (const from of [Math.ceil(end / SECTOR) * SECTOR, Math.max(oldEnd, Math.ceil(end / SECTOR) * SECTOR)]) {
    const to = Math.ceil((from + length) / SECTOR) * SECTOR;
    const meetsOld = from < oldEnd && Math.floor(old.at / SECTOR) * SECTOR < to;
    if (!meetsOld && to <= headerBytes) return from;
  }
  return undefined;
}
