/** Filters that hand everything on: what QEMU's do beyond that matters to guests, not to tools. */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import type { FlatOptions } from '../flat-options.js';
import type { NodeName } from '../image.js';
import { shownName } from '../node-name.js';
import type { OpenedFile } from '../open-storage.js';
import type { OptionDeclaration } from '../option-table.js';
import type { FilterContext, FilterDriver } from './filter.js';
import { ForwardStorage } from './forward.js';

/** A filter on `file` that hands everything on; `own` are its options as they were given. */
export async function passThrough(
  driver: string,
  { openChild }: FilterContext,
  own: Readonly<Record<string, unknown>>,
  wrap: (below: Storage, filename: string) => Storage = (below, filename) =>
    new ForwardStorage(driver, filename, 'file', below),
): Promise<OpenedFile> {
  const file = await openChild('file');
  const name: NodeName = {
    plain: undefined,
    options: { ...own, driver, file: file.name.options },
    home: file.name.home,
  };
  const filename = shownName(name);
  const { reopen } = file;
  try {
    return {
      storage: wrap(file.storage, filename),
      path: file.path,
      name,
      lockables: file.lockables,
      ...(reopen === undefined ? {} : { reopen: async (locks) => wrap(await reopen(locks), filename) }),
    };
  } catch (error) {
    await file.storage.close().catch(() => {});
    throw error;
  }
}

function takeOwn(flat: FlatOptions, table: readonly OptionDeclaration[]): Record<string, unknown> {
  const own: Record<string, unknown> = {};
  for (const { name } of table) if (flat.has(name)) own[name] = new Map(flat.entries()).get(name);
  flat.takeDeclared(table);
  return own;
}

const COPY_ON_READ: readonly OptionDeclaration[] = [{ name: 'bottom', type: 'string', help: '' }];

/** Nothing is copied on reads: tools that read open read-only, which this filter refuses; writes go through. */
export const copyOnRead: FilterDriver = {
  name: 'copy-on-read',
  async open(context) {
    const own = takeOwn(context.flat, COPY_ON_READ);
    if (!context.writable) throw new ImageError('read-only', 'Block node is read-only');
    return passThrough('copy-on-read', context, own);
  },
};

const PREALLOCATE: readonly OptionDeclaration[] = [
  { name: 'prealloc-align', type: 'size', help: '' },
  { name: 'prealloc-size', type: 'size', help: '' },
];

/** What it allocates ahead of writes it gives back at close: of a tool's run nothing is left. */
export const preallocate: FilterDriver = {
  name: 'preallocate',
  async open(context) {
    return passThrough('preallocate', context, takeOwn(context.flat, PREALLOCATE));
  },
};
