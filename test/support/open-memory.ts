/** Opens format nodes on bytes in memory, and reads them whole without the access path. */

import type { Extent, FormatDriver, FormatNode, OpenContext } from '../../src/engine/node/driver.js';
import { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import type { Storage } from '../../src/engine/storage/storage.js';

export interface MemoryContext extends OpenContext {
  /** Names that the driver asked to open. */
  readonly asked: { readonly child: string; readonly recorded: string | undefined }[];
  readonly warnings: string[];
}

/** A context whose only file is `content`; further files come from `children` by recorded name, and are recorded. */
export function memoryContext(
  content: Uint8Array | Storage,
  overrides: Partial<OpenContext> & { readonly children?: ReadonlyMap<string, Uint8Array> } = {},
): MemoryContext {
  const { children, ...rest } = overrides;
  const asked: { child: string; recorded: string | undefined }[] = [];
  const warnings: string[] = [];
  return {
    file:
      content instanceof Uint8Array
        ? new MemoryStorage(content, { writable: rest.writable ?? false })
        : content,
    writable: false,
    options: {},
    forCheck: false,
    metadataOnly: false,
    openChild: async (child, recorded) => {
      asked.push({ child, recorded });
      const bytes = recorded === undefined ? undefined : children?.get(recorded);
      return bytes === undefined ? undefined : new MemoryStorage(bytes, { writable: false });
    },
    warn: (text) => warnings.push(text),
    ...rest,
    asked,
    warnings,
  };
}

/** A new image in memory, of one file. */
export async function createInMemory(
  driver: FormatDriver,
  filename: string,
  size: number,
  options: OptionValues = {},
  backing?: { readonly filename: string; readonly format?: string },
): Promise<MemoryStorage> {
  const file = new MemoryStorage(0, { filename });
  const extra = async (): Promise<never> => {
    throw new Error('no further files');
  };
  await driver.create!({
    ...{ file, filename, size, options },
    ...(backing === undefined ? {} : { backing }),
    createExtra: extra,
    openExtra: extra,
  });
  return file;
}

/** The image on such a file, which stays open when the image is closed. */
export async function imageInMemory(
  driver: FormatDriver,
  file: MemoryStorage,
  how: Partial<OpenContext> = {},
): Promise<ImageNode> {
  const writable = how.writable ?? false;
  const format = await driver.open(memoryContext(file, { writable, ...how }));
  return new ImageNode({
    filename: file.filename,
    path: undefined,
    ...{ driver, format, writable },
    // The node would close it with itself.
    file: new MemoryStorage(0),
    backing: undefined,
  });
}

/** The extents of the whole node, in order, no more than `limit`. */
export async function extentsOf(node: FormatNode, limit = 100_000): Promise<Extent[]> {
  const found: Extent[] = [];
  for (let at = 0; at < node.size; ) {
    const extent = await node.map({ at, length: node.size - at });
    if (extent.length <= 0 || extent.length > node.size - at)
      throw new Error(`extent of ${extent.length} at ${at}`);
    if (found.length >= limit) throw new Error('too many extents');
    found.push(extent);
    at += extent.length;
  }
  return found;
}

/** Guest bytes of a node without backing file, in requests of at most `piece` bytes. */
export async function contentOf(
  node: FormatNode,
  piece = node.size,
  range = { at: 0, length: node.size },
): Promise<Buffer> {
  const out = Buffer.alloc(range.length);
  for (let done = 0; done < range.length; ) {
    const at = range.at + done;
    const extent = await node.map({ at, length: Math.min(piece, range.length - done) });
    const into = out.subarray(done, done + extent.length);
    if (extent.kind === 'data') await extent.storage.read(extent.at, into);
    else if (extent.kind === 'packed') await extent.read(into);
    done += extent.length;
  }
  return out;
}
