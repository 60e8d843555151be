/** image-map: where the guest's bytes are. */
import type { ImageMapParams, ImageMapResult, MapEntry } from '../../protocol/commands/image-map.js';
import { ImageError } from '../error.js';
import type { Extent } from '../node/driver.js';
import type { ChainExtent, ImageNode } from '../node/image.js';
import { NodeStorage } from '../node/node-storage.js';
import { openImage } from '../node/open.js';
import type { DataRun, MaybePromise, Range, Storage } from '../storage/storage.js';
import type { OperationContext } from './context.js';

const BATCH = 1000;
/** More entries than this are only given as a stream. */
const MAX_ENTRIES = 100_000;
/** After so many runs the event loop and a pause or cancel get their turn. */
const RUNS_PER_TURN = 256;

/** Hosts allocate no less, for formats that have no unit of their own. */
const PAGE = 4096;

/**
 * Whether the data that a layer has in `storage` may lie on holes: metadata was preallocated, or the guest trimmed below the
 * format's feet. The same measure as the reference's: clearly fewer clusters are allocated on the host than the file is long.
 */
export async function mayHaveHoles({ format, file }: ImageNode, data: Storage): Promise<boolean> {
  // As the reference does it: of a format that keeps the data apart, its own file tells whether it was preallocated.
  const storage = data === format.children.get('data-file') ? file : data;
  const unit = (await format.info()).clusterSize ?? Math.max(format.unit, PAGE);
  const allocated = Math.floor(((await storage.allocated()) ?? storage.size) / unit);
  return Math.ceil(storage.size / unit) >= Math.max(Math.floor((allocated * 10) / 9), allocated + 2);
}

/** Entries in the making: equal neighbours become one, full batches go out. */
class Entries {
  count = 0;
  /** What is kept for the result where nothing is streamed. */
  readonly kept: MapEntry[] | undefined;
  readonly #context: OperationContext;
  #batch: MapEntry[] = [];
  #last: MapEntry | undefined;

  constructor(stream: boolean, context: OperationContext) {
    this.kept = stream ? undefined : [];
    this.#context = context;
  }

  add(entry: MapEntry): void {
    const last = this.#last;
    if (last !== undefined && continues(last, entry)) {
      last.length += entry.length;
      return;
    }
    this.#push();
    this.#last = entry;
  }

  end(): void {
    this.#push();
    this.#last = undefined;
    this.#flush();
  }

  #push(): void {
    if (this.#last === undefined) return;
    this.count++;
    if (this.kept !== undefined) {
      if (this.count > MAX_ENTRIES) {
        throw new ImageError('limit', `The map has more than ${MAX_ENTRIES} entries: ask for it as a stream`);
      }
      this.kept.push(this.#last);
      return;
    }
    this.#batch.push(this.#last);
    if (this.#batch.length === BATCH) this.#flush();
  }

  /** Hands out what is complete. */
  #flush(): void {
    if (this.#batch.length > 0) this.broken();
  }

  /** Likewise before an error, be it nothing: the image was opened, and looking at it had begun. */
  broken(): void {
    if (this.kept !== undefined) return;
    this.#context.output({ stream: 'entries', entries: this.#batch });
    this.#batch = [];
  }
}

function continues(last: MapEntry, next: MapEntry): boolean {
  return (
    last.zero === next.zero &&
    last.data === next.data &&
    last.present === next.present &&
    last.compressed === next.compressed &&
    last.depth === next.depth &&
    last.filename === next.filename &&
    (last.offset === undefined ? next.offset === undefined : last.offset + last.length === next.offset)
  );
}

/** A format's data where the host has a hole, as the format's driver tells it. */
function holeUnderData({ layer, extent }: ChainExtent): boolean {
  return extent?.kind === 'zero' && extent.storage !== undefined && layer.format.dataHoles === true;
}

/** The entry for one run of the chain. */
function entryOf(start: number, run: ChainExtent): MapEntry {
  const { kind, length, depth, extent } = run;
  // A backing file that ended before: it is the layer above that says the rest is zeros, without having it allocated.
  if (extent === undefined) {
    const rest = plain(start, length, depth - 1, false, true, false, false);
    return run.above?.kind === 'backing' ? placed(rest, run.above) : rest;
  }
  const entry = plain(
    start,
    length,
    depth,
    kind !== 'none',
    kind === 'zero' || kind === 'none',
    kind === 'data' || kind === 'packed' || holeUnderData(run),
    kind === 'packed',
  );
  return placed(entry, extent);
}

function placed(entry: MapEntry, extent: Extent): MapEntry {
  if (extent.kind === 'packed' || extent.storage === undefined) return entry;
  return { ...entry, offset: extent.at!, filename: extent.storage.filename };
}

function plain(
  start: number,
  length: number,
  depth: number,
  present: boolean,
  zero: boolean,
  data: boolean,
  compressed: boolean,
): MapEntry {
  return { start, length, depth, present, zero, data, compressed };
}

/** Whose bytes these are: the storage below its filters. */
function belowFilters(storage: Storage): Storage {
  return storage.filtered === undefined ? storage : belowFilters(storage.filtered);
}

class Mapper {
  readonly #context: OperationContext;
  readonly #entries: Entries;
  readonly #sparse = new Map<Storage, boolean>();
  #runs = 0;

  constructor(entries: Entries, context: OperationContext) {
    this.#entries = entries;
    this.#context = context;
  }

  /** `within`: this image is the file of a transparent layer, which has these bytes from `start` on at this depth. */
  async run(
    image: ImageNode,
    range: Range,
    within?: { readonly start: number; readonly depth: number },
  ): Promise<void> {
    const start = within?.start ?? range.at;
    for (let done = 0; done < range.length; ) {
      if (++this.#runs % RUNS_PER_TURN === 0) {
        if (within === undefined) this.#context.progress({ phase: 'map', done, total: range.length });
        const waits = this.#context.pace(0);
        if (waits !== undefined) await waits;
      }
      const answer = this.#status(image, { at: range.at + done, length: range.length - done });
      const found = answer instanceof Promise ? await answer : answer;
      const run = within === undefined ? found : { ...found, depth: within.depth };
      await this.#add(start + done, run);
      done += run.length;
    }
  }

  async #add(start: number, run: ChainExtent): Promise<void> {
    const { extent, layer, length, depth } = run;
    const { format } = layer;
    if (extent !== undefined && format.opaque === true) {
      this.#entries.add(plain(start, length, depth, true, false, true, false));
      return;
    }
    if (format.transparent === true && extent !== undefined && extent.kind !== 'packed') {
      const { storage, at } = extent;
      const below = storage === undefined ? undefined : belowFilters(storage);
      if (below instanceof NodeStorage) {
        await this.run(below.image, { at: at!, length }, { start, depth });
        return;
      }
      // Several files that are one have the bytes in no one place.
      if (below?.children !== undefined) {
        const { offset: _, filename: __, ...entry } = entryOf(start, run);
        this.#entries.add(entry);
        return;
      }
      if (below !== undefined && below !== storage) {
        await this.#placed(start, {
          ...run,
          extent: { ...extent, storage: below, at: at! } as typeof extent,
        });
        return;
      }
    }
    await this.#placed(start, run);
  }

  /** A run whose place is known to be where it says. */
  async #placed(start: number, run: ChainExtent): Promise<void> {
    const { extent } = run;
    if (extent?.kind === 'data' && run.layer.format.dataHoles === undefined) {
      let sparse = this.#sparse.get(extent.storage);
      if (sparse === undefined) {
        sparse = await mayHaveHoles(run.layer, extent.storage);
        this.#sparse.set(extent.storage, sparse);
      }
      if (sparse) return this.#holes(start, run, extent.storage, extent.at);
    }
    this.#entries.add(entryOf(start, run));
  }

  /** The next run; a table that cannot be read ends the map in the reference's words. */
  #status(image: ImageNode, range: Range): MaybePromise<ChainExtent> {
    const refused = (error: unknown): never => {
      if (!(error instanceof ImageError) || error.kind === 'cancelled') throw error;
      throw error.prefixed('Could not read file metadata: ');
    };
    try {
      const answer = image.status(range);
      return answer instanceof Promise ? answer.catch(refused) : answer;
    } catch (error) {
      return refused(error);
    }
  }

  /** Allocated data whose host space is not: zeros that are data all the same. */
  async #holes(start: number, run: ChainExtent, storage: Storage, at: number): Promise<void> {
    const whole = entryOf(start, run);
    for (let done = 0; done < run.length; ) {
      const answer: MaybePromise<DataRun> = storage.extent({ at: at + done, length: run.length - done });
      const found = answer instanceof Promise ? await answer : answer;
      this.#entries.add({
        ...whole,
        start: start + done,
        length: found.length,
        zero: !found.data,
        offset: at + done,
      });
      done += found.length;
    }
  }
}

/** Tells the runs of an image through its whole chain, neighbours that differ in nothing as one. */
export async function map(params: ImageMapParams, context: OperationContext): Promise<ImageMapResult> {
  const image = await openImage(params.image, {}, context);
  let entries: Entries | undefined;
  try {
    const start = params['start-offset'] ?? 0;
    const end = Math.min(image.size, start + (params['max-length'] ?? image.size));
    entries = new Entries(params.stream === true, context);
    if (start < end) await new Mapper(entries, context).run(image, { at: start, length: end - start });
    // An empty range has one entry, as the reference has it.
    if (start >= end) entries.add(plain(start, 0, 0, false, false, false, false));
    entries.end();
  } catch (error) {
    entries?.broken();
    await image.close().catch(() => {});
    throw error;
  }
  await image.close();
  const { count, kept } = entries;
  return kept === undefined ? { count } : { count, entries: kept };
}
