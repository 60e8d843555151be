/** Where the parent of a differencing disk is: "Implementing a Differencing Hard Disk". */
import { ImageError } from '../../error.js';
import type { BackingReference } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { PARENT_LOCATORS, ParentLocator, Platform } from './layout.js';
import type { HeaderFields } from './open.js';

/** Windows paths are of 32,767 characters at most. */
const MAX_LOCATOR_BYTES = 65536;

/** Identifies a disk to those that have it as their parent: 48 bits of its unique id, which are as good as random. */
export function contentId(uniqueId: Uint8Array): number {
  return Buffer.from(uniqueId).readUIntBE(10, 6);
}

/**
 * A relative Windows path as one of the host. Nothing in it may be taken for a protocol (`json:`), so that one with a colon
 * in its first part gets a folder in front.
 */
function hostPath(text: string): string {
  const plain = text.replaceAll('\\', '/').replace(/^(?:\.\/+)+/, '');
  return /^[^/]*:/.test(plain) ? `./${plain}` : plain;
}

/** The last part of a path of Windows: drive letters and UNC names mean nothing here. */
function bareName(text: string): string {
  return hostPath(text.slice(Math.max(text.lastIndexOf('\\'), text.lastIndexOf('/')) + 1));
}

function utf16le(bytes: Uint8Array): string {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length & ~1).toString('utf16le');
  const end = text.indexOf('\0');
  return end < 0 ? text : text.slice(0, end);
}

function fileUrl(bytes: Uint8Array): string | undefined {
  const text = Buffer.from(bytes).toString('utf8').replace(/\0.*$/s, '');
  const found = /^file:\/\/(?:localhost)?(\/.*)$/.exec(text);
  try {
    return found === null ? undefined : decodeURIComponent(found[1]!);
  } catch {
    return undefined;
  }
}

/**
 * The parent's name: the relative path where there is one, else a file URL; else, in the image's own folder, the bare name
 * that the absolute Windows path or the header has.
 *
 * @throws ImageError `corrupt` where none can be found.
 */
export async function parentOf(file: Storage, header: HeaderFields): Promise<BackingReference> {
  const names = new Map<number, string>();
  for (let index = 0; index < PARENT_LOCATORS; index++) {
    const locator = ParentLocator.decode(header.parentLocators, index * ParentLocator.size);
    const { platformCode: code, platformDataLength: length, platformDataOffset: at } = locator;
    if (code !== Platform.w2ru && code !== Platform.w2ku && code !== Platform.macX) continue;
    if (names.has(code)) continue;
    if (length === 0 || length > MAX_LOCATOR_BYTES || at + BigInt(length) > BigInt(file.size)) {
      throw new ImageError('corrupt', `Invalid VPC image: parent locator ${index + 1} is out of range`);
    }
    const bytes = new Uint8Array(length);
    await file.read(Number(at), bytes);
    const name =
      code === Platform.macX
        ? fileUrl(bytes)
        : code === Platform.w2ru
          ? hostPath(utf16le(bytes))
          : bareName(utf16le(bytes));
    if (name !== undefined && name !== '') names.set(code, name);
  }
  const name =
    names.get(Platform.w2ru) ??
    names.get(Platform.macX) ??
    names.get(Platform.w2ku) ??
    bareName(utf16le(Buffer.from(header.parentUnicodeName).swap16()));
  if (name === '') throw new ImageError('corrupt', 'Invalid VPC image: the parent has no name');
  return { filename: name, format: 'vpc', contentId: contentId(header.parentUniqueId) };
}
