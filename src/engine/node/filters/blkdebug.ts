/** blkdebug: a storage that fails when its rules say so, and that can be made to have the limits of odd devices. */
import { errnoText, hostError, ImageError } from '../../error.js';
import { errnoName } from '../../storage/host/errno.js';
import type { DataRun, MaybePromise, Range, Storage } from '../../storage/storage.js';
import type { FlatOptions, FlatValue } from '../flat-options.js';
import type { NodeName } from '../image.js';
import { shownName } from '../node-name.js';
import type { OpenedFile } from '../open-storage.js';
import type { OptionDeclaration } from '../option-table.js';
import { rulesFromOptions, rulesFromText } from './blkdebug-config.js';
import { type IoType, Rules } from './blkdebug-rules.js';
import type { FilterContext, FilterDriver } from './filter.js';
import { ForwardStorage } from './forward.js';

/** Limits that requests are held to; 0: none. */
interface Limits {
  readonly align: number;
  readonly maxTransfer: number;
  readonly optWriteZero: number;
  readonly maxWriteZero: number;
  readonly optDiscard: number;
  readonly maxDiscard: number;
}

const LIMITS: readonly OptionDeclaration[] = [
  'align',
  'max-transfer',
  'opt-write-zero',
  'max-write-zero',
  'opt-discard',
  'max-discard',
].map((name) => ({ name, type: 'size', help: '' }));

/** Limits are QEMU's ints. */
const INT_MAX = 2 ** 31 - 1;
const ZERO_CHUNK = 1024 * 1024;

export class BlkdebugStorage extends ForwardStorage {
  readonly rules: Rules;
  readonly #limits: Limits;
  readonly #unsafe: boolean;

  constructor(filename: string, below: Storage, rules: Rules, limits: Limits, unsafe = false) {
    super('blkdebug', filename, 'image', below);
    this.rules = rules;
    this.#limits = limits;
    this.#unsafe = unsafe;
  }

  override get alignment(): number {
    return Math.max(this.#limits.align, this.below.alignment);
  }

  /** The host space of what is being debugged is not told, as in QEMU. */
  override allocated(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    for (const piece of pieces({ at, length: into.byteLength }, this.#limits.maxTransfer)) {
      this.#check('read', this.#aligned(piece));
      await this.below.read(piece.at, into.subarray(piece.at - at, piece.at - at + piece.length));
    }
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    this.event('pwritev');
    try {
      for (const piece of pieces({ at, length: from.byteLength }, this.#limits.maxTransfer)) {
        this.#check('write', this.#aligned(piece));
        await this.below.write(piece.at, from.subarray(piece.at - at, piece.at - at + piece.length));
      }
    } finally {
      this.event('pwritev_done');
    }
  }

  override async zero(range: Range, options?: { readonly unmap?: boolean }): Promise<void> {
    const { optWriteZero, align, maxWriteZero } = this.#limits;
    const { before, inner, after } = split(range, Math.max(optWriteZero, align));
    this.event('pwritev_zero');
    try {
      await this.#writeZeros(before);
      for (const piece of pieces(inner, maxWriteZero)) {
        this.#check('write-zeroes', piece);
        await this.below.zero(piece, options);
      }
      await this.#writeZeros(after);
    } finally {
      this.event('pwritev_done');
    }
  }

  async #writeZeros({ at, length }: Range): Promise<void> {
    for (let done = 0; done < length; done += ZERO_CHUNK) {
      const piece = { at: at + done, length: Math.min(ZERO_CHUNK, length - done) };
      this.#check('write', this.#aligned(piece));
      await this.below.write(piece.at, Buffer.alloc(piece.length));
    }
  }

  override async discard(range: Range): Promise<void> {
    const { inner } = split(range, Math.max(this.#limits.optDiscard, this.#limits.align));
    for (const piece of pieces(inner, this.#limits.maxDiscard)) {
      this.#check('discard', piece);
      await this.below.discard(piece);
    }
  }

  event(name: string): void {
    this.rules.fire(name);
  }

  override async flush(): Promise<void> {
    if (!this.#unsafe) this.#check('flush', { at: 0, length: 0 });
    await this.below.flush();
  }

  override extent(range: Range): MaybePromise<DataRun> {
    this.#check('block-status', range);
    return this.below.extent(range);
  }

  /** Requests reach a device in whole units of its alignment. */
  #aligned({ at, length }: Range): Range {
    const { align } = this.#limits;
    if (align <= 1) return { at, length };
    const start = at - (at % align);
    return { at: start, length: Math.ceil((at + length) / align) * align - start };
  }

  #check(ioType: IoType, { at, length }: Range): void {
    const number = this.rules.failure(ioType, at, length);
    if (number === undefined) return;
    const code = errnoName(number);
    const { kind } = hostError('', { code });
    throw new ImageError(kind, errnoText(code), {
      path: this.filename,
      operation: ioType,
      errno: code,
      offset: at,
    });
  }
}

function* pieces({ at, length }: Range, max: number): Generator<Range> {
  const step = max === 0 ? length : max;
  for (let done = 0; done < length; done += step) {
    yield { at: at + done, length: Math.min(step, length - done) };
  }
}

/** The whole units inside a range, and what stands over on both sides. */
function split({ at, length }: Range, unit: number): Record<'before' | 'inner' | 'after', Range> {
  if (unit <= 1) return { before: { at, length: 0 }, inner: { at, length }, after: { at, length: 0 } };
  const end = at + length;
  const first = Math.min(end, Math.ceil(at / unit) * unit);
  const last = Math.max(first, end - (end % unit));
  return {
    before: { at, length: first - at },
    inner: { at: first, length: last - first },
    after: { at: last, length: end - last },
  };
}

function takeLimits(flat: FlatOptions): Limits {
  const given = flat.takeDeclared(LIMITS);
  const limit = (name: string, unit: number): number => {
    const value = (given[name] as number | undefined) ?? 0;
    if (value >= INT_MAX || value % Math.max(1, unit) !== 0) {
      throw new ImageError('invalid', `Cannot meet constraints with ${name} ${value}`);
    }
    return value;
  };
  const align = limit('align', 1);
  if (align > 0 && !Number.isInteger(Math.log2(align))) {
    throw new ImageError('invalid', `Cannot meet constraints with align ${align}`);
  }
  const maxTransfer = limit('max-transfer', align);
  const optWriteZero = limit('opt-write-zero', align);
  const maxWriteZero = limit('max-write-zero', Math.max(optWriteZero, align));
  const optDiscard = limit('opt-discard', align);
  const maxDiscard = limit('max-discard', Math.max(optDiscard, align));
  return { align, maxTransfer, optWriteZero, maxWriteZero, optDiscard, maxDiscard };
}

const PERMISSION_NAMES = ['consistent-read', 'write', 'write-unchanged', 'resize'];

/** Permissions to hold beyond what is needed: known names are taken and have no effect of their own. */
function takePermissions(flat: FlatOptions, writable: boolean): void {
  for (const key of ['take-child-perms', 'unshare-child-perms']) {
    for (const [, value] of flat.takeChild(key).entries()) {
      if (!PERMISSION_NAMES.includes(String(value))) {
        throw new ImageError('invalid', `Parameter 'null' does not accept value '${String(value)}'`);
      }
      if (key === 'take-child-perms' && !writable && value !== 'consistent-read') {
        throw new ImageError('read-only', 'Block node is read-only');
      }
    }
  }
}

/** Options that only `config` and the image say all about: such a node has a plain name. */
const PLAIN_OPTIONS = /^(config$|image\.|(take|unshare)-child-perms\.)/;

function nameOf(own: ReadonlyMap<string, FlatValue>, image: NodeName): NodeName {
  const options: Record<string, unknown> = {};
  let plain = image.plain !== undefined;
  for (const [key, value] of own) {
    if (!PLAIN_OPTIONS.test(key)) plain = false;
    if (key === 'config' || !PLAIN_OPTIONS.test(key)) options[key] = value;
  }
  return {
    plain: plain ? `blkdebug:${own.get('config') ?? ''}:${image.plain}` : undefined,
    options: { ...options, driver: 'blkdebug', image: image.options },
    home: image.home,
  };
}

async function open({ flat, writable, unsafe, openChild, readText }: FilterContext): Promise<OpenedFile> {
  const own = new Map(flat.entries());
  const rules = new Rules();
  const config = flat.takeString('config');
  if (config !== undefined) {
    let text: string;
    try {
      text = await readText(config);
    } catch (error) {
      throw hostError('Could not read blkdebug config file', error);
    }
    rulesFromText(text, rules);
  }
  rulesFromOptions(flat, rules);
  const limits = takeLimits(flat);
  takePermissions(flat, writable);
  const image = await openChild('image');
  rules.fire('none');
  const name = nameOf(own, image.name);
  const wrap = (below: Storage) => new BlkdebugStorage(shownName(name), below, rules, limits, unsafe);
  const { reopen } = image;
  return {
    storage: wrap(image.storage),
    path: image.path,
    name,
    lockables: image.lockables,
    // The rules and their state go on with the node.
    ...(reopen === undefined ? {} : { reopen: async (locks) => wrap(await reopen(locks)) }),
  };
}

export const blkdebug: FilterDriver = { name: 'blkdebug', protocol: true, open };
