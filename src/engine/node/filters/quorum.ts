/** quorum: several nodes with the same content; reads go by vote, writes must succeed in enough of them. */
import { ImageError } from '../../error.js';
import { requestError } from '../../storage/check.js';
import type { DataRun, Preallocation, Range, Storage } from '../../storage/storage.js';
import type { FlatOptions } from '../flat-options.js';
import type { NodeName } from '../image.js';
import { shownName } from '../node-name.js';
import type { OptionDeclaration } from '../option-table.js';
import type { FilterDriver } from './filter.js';
import { closeAll, each, firstError, openAll } from './several.js';

const OPTIONS: readonly OptionDeclaration[] = [
  { name: 'vote-threshold', type: 'number', help: '' },
  { name: 'blkverify', type: 'bool', help: '' },
  { name: 'rewrite-corrupted', type: 'bool', help: '' },
  { name: 'read-pattern', type: 'string', help: '' },
];

/** Each read takes a buffer a child. */
const MAX_CHILDREN = 32;

interface Settings {
  readonly threshold: number;
  /** The first child that answers is believed. */
  readonly fifo: boolean;
  /** Children that were outvoted get the winner's bytes, where they can be written. */
  readonly rewrite: boolean;
}

class QuorumStorage implements Storage {
  readonly driver = 'quorum';
  readonly filename: string;
  readonly children: ReadonlyMap<string, Storage>;
  readonly writable: boolean;
  readonly alignment = 1;
  readonly #all: readonly Storage[];
  readonly #settings: Settings;

  constructor(filename: string, children: ReadonlyMap<string, Storage>, settings: Settings) {
    this.filename = filename;
    this.children = children;
    this.#all = [...children.values()];
    this.#settings = settings;
    this.writable = this.#all.every((child) => child.writable);
  }

  get size(): number {
    return this.#all[0]!.size;
  }

  async allocated(): Promise<number | undefined> {
    let sum = 0;
    for (const child of this.#all) {
      const bytes = await child.allocated();
      if (bytes === undefined) return undefined;
      sum += bytes;
    }
    return sum;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    if (this.#settings.fifo) return this.#readFirst(at, into);
    const buffers = this.#all.map((_, index) => (index === 0 ? into : Buffer.allocUnsafe(into.byteLength)));
    const results = await each(this.#all, (child, index) => child.read(at, buffers[index]!));
    const answered = buffers.filter((_, index) => results[index]!.status === 'fulfilled');
    if (answered.length < this.#settings.threshold) firstError(results);
    // Versions by how many gave them; mostly there is one.
    const versions: { readonly bytes: Uint8Array; readonly votes: Uint8Array[] }[] = [];
    for (const bytes of answered) {
      const same = versions.find((version) => Buffer.compare(version.bytes, bytes) === 0);
      if (same === undefined) versions.push({ bytes, votes: [bytes] });
      else same.votes.push(bytes);
    }
    const winner = versions.reduce((best, next) => (next.votes.length > best.votes.length ? next : best));
    if (winner.votes.length < this.#settings.threshold) {
      throw requestError({ code: 'EIO' }, this.filename, 'read', at);
    }
    // `into` may be a loser's, which is still to be told apart: it is filled last.
    if (this.#settings.rewrite && this.writable && versions.length > 1) {
      const losers = this.#all.filter((_, index) => !winner.votes.includes(buffers[index]!));
      firstError(await each(losers, (child) => child.write(at, winner.bytes)));
    }
    if (winner.bytes !== into) into.set(winner.bytes);
  }

  async #readFirst(at: number, into: Uint8Array): Promise<void> {
    let failure: unknown;
    for (const child of this.#all) {
      try {
        return await child.read(at, into);
      } catch (error) {
        failure ??= error;
      }
    }
    throw failure;
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#change((child) => child.write(at, from));
  }

  zero(range: Range, options?: { readonly unmap?: boolean }): Promise<void> {
    return this.#change((child) => child.zero(range, options));
  }

  discard(range: Range): Promise<void> {
    return this.#change((child) => child.discard(range));
  }

  /** All must have one size. */
  async truncate(size: number, preallocation?: Preallocation): Promise<void> {
    firstError(await each(this.#all, (child) => child.truncate(size, preallocation)));
  }

  flush(): Promise<void> {
    return this.#change((child) => child.flush());
  }

  /** A hole is what all children have as a hole: the others' bytes go to the vote. */
  async extent(range: Range): Promise<DataRun> {
    let { length } = range;
    let data = false;
    for (const child of this.#all) {
      const run = await child.extent({ at: range.at, length });
      data ||= run.data;
      length = run.length;
    }
    return { data, length };
  }

  async close(): Promise<void> {
    firstError(await each(this.#all, (child) => child.close()));
  }

  async #change(work: (child: Storage) => Promise<void>): Promise<void> {
    const results = await each(this.#all, work);
    const done = results.filter((result) => result.status === 'fulfilled').length;
    if (done < this.#settings.threshold) firstError(results);
  }
}

/** `children.0`, `children.1`, ...: as many as there are, without gaps. */
function childNames(flat: FlatOptions): string[] {
  const indices = new Set<string>();
  for (const [key] of flat.entries()) {
    const [first, index] = key.split('.');
    if (first === 'children' && index !== undefined) indices.add(index);
  }
  const names = [...indices].map((_, index) => `children.${index}`);
  if (names.some((_, index) => !indices.has(String(index)))) {
    throw new ImageError('invalid', 'Option children is not a valid array');
  }
  if (names.length === 0) throw new ImageError('invalid', 'Number of provided children must be 1 or more');
  if (names.length > MAX_CHILDREN) {
    throw new ImageError('limit', `A quorum of more than ${MAX_CHILDREN} children is not supported`);
  }
  return names;
}

function takeSettings(flat: FlatOptions, count: number): Settings {
  const given = flat.takeDeclared(OPTIONS);
  const threshold = (given['vote-threshold'] as number | undefined) ?? 0;
  if (threshold < 1) throw new ImageError('invalid', "Parameter 'vote-threshold' expects a value >= 1");
  if (threshold > count) throw new ImageError('invalid', 'threshold may not exceed children count');
  const pattern = given['read-pattern'] ?? 'quorum';
  if (pattern !== 'quorum' && pattern !== 'fifo') {
    throw new ImageError('invalid', `Parameter 'read-pattern' does not accept value '${pattern}'`);
  }
  if (given.blkverify === true && (count !== 2 || threshold !== 2)) {
    throw new ImageError(
      'invalid',
      'blkverify=on can only be set if there are exactly two files and vote-threshold is 2',
    );
  }
  if (given.blkverify === true && given['rewrite-corrupted'] === true) {
    throw new ImageError('invalid', 'rewrite-corrupted=on cannot be used with blkverify=on');
  }
  return { threshold, fifo: pattern === 'fifo', rewrite: given['rewrite-corrupted'] === true };
}

export const quorum: FilterDriver = {
  name: 'quorum',
  async open({ flat, openChild }) {
    const names = childNames(flat);
    const own: Record<string, unknown> = {};
    for (const [key, value] of flat.entries()) if (!key.startsWith('children.')) own[key] = value;
    const settings = takeSettings(flat, names.length);
    const opened = await openAll(names, (name) => openChild(name, { strict: true }));
    const storages = opened.map(({ storage }) => storage);
    if (storages.some(({ size }) => size !== storages[0]!.size)) {
      await closeAll(opened);
      throw new ImageError('io', 'Could not refresh total sector count: Input/output error', {
        errno: 'EIO',
      });
    }
    const name: NodeName = {
      plain: undefined,
      options: { ...own, driver: 'quorum', children: opened.map((each) => each.name.options) },
      home: undefined,
    };
    const children = new Map(names.map((child, index) => [child, storages[index]!]));
    return {
      storage: new QuorumStorage(shownName(name), children, settings),
      path: undefined,
      name,
      lockables: opened.flatMap((each) => each.lockables),
    };
  },
};
