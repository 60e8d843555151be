/** An open image as the node layer sees it. */
import { ImageError } from '../../error.js';
import type {
  BitmapFacet,
  CheckFacet,
  Extent,
  FormatInfo,
  FormatNode,
  OpenContext,
  WriteTarget,
} from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import { PAGE_ENTRIES } from '../entry-table.js';
import { checkImage, parallelsChecker } from './check.js';
import { Clusters } from './clusters.js';
import { readBitmaps } from './extension.js';
import { type ParallelsImage, readImage } from './image.js';
import { ParallelsWriter } from './write.js';

class ParallelsNode implements FormatNode {
  readonly size: number;
  readonly unit: number;
  readonly children: ReadonlyMap<string, Storage> = new Map();
  readonly startsAsZero = true;
  readonly dataHoles = false;
  readonly storesBitmaps = true;
  readonly checker: CheckFacet;
  readonly bitmapStore: BitmapFacet | undefined;
  readonly #image: ParallelsImage;
  readonly #writer: ParallelsWriter | undefined;

  constructor(image: ParallelsImage, writer: ParallelsWriter | undefined, bitmaps: BitmapFacet | undefined) {
    this.#image = image;
    this.#writer = writer;
    this.size = image.size;
    this.unit = image.clusterSize;
    this.bitmapStore = bitmaps;
    this.checker = parallelsChecker(image, () => this.flush());
  }

  map(range: Range): MaybePromise<Extent> {
    const { bat, clusterSize } = this.#image;
    const cluster = Math.floor(range.at / clusterSize);
    // The disk may be larger than what the BAT has entries for.
    if (cluster >= bat.count) return { kind: 'backing', length: range.length };
    const page = bat.page(cluster);
    if (page !== undefined) return this.#extent(page, cluster, range);
    return bat.load(cluster).then((loaded) => this.#extent(loaded, cluster, range));
  }

  /** The run of clusters, in one page of the BAT, that are not there or that follow each other in the file. */
  #extent(page: Uint32Array, cluster: number, { at, length }: Range): Extent {
    const { bat, clusterSize, entryUnit, file } = this.#image;
    const within = at - cluster * clusterSize;
    const first = cluster % PAGE_ENTRIES;
    const inPage = Math.min(PAGE_ENTRIES - first, bat.count - cluster);
    const most = Math.min(inPage, Math.ceil((within + length) / clusterSize));
    const entry = page[first]!;
    const step = entry === 0 ? 0 : clusterSize / entryUnit;
    let count = 1;
    while (count < most && page[first + count] === entry + count * step) count++;
    const place = this.#image.placeOf(entry);
    const run = Math.min(length, count * clusterSize - within);
    if (entry === 0) return { kind: 'backing', length: run };
    // Where no file reaches, files read as zeros.
    if (place + count * clusterSize > Number.MAX_SAFE_INTEGER) {
      return { kind: 'zero', length: Math.min(run, clusterSize - within) };
    }
    return { kind: 'data', length: run, storage: file, at: place + within };
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    return this.#writing.prepareWrite(range);
  }

  zero(range: Range): Promise<boolean> {
    return this.#writing.zero(range);
  }

  discard(range: Range): Promise<void> {
    return this.#writing.discard(range);
  }

  get #writing(): ParallelsWriter {
    if (this.#writer === undefined) throw new ImageError('read-only', 'the image was opened for reading');
    return this.#writer;
  }

  async flush(): Promise<void> {
    await this.#writer?.flush();
  }

  async close(): Promise<void> {
    await this.#writer?.close();
  }

  info(): FormatInfo {
    return {};
  }
}

/** What another program has left behind is repaired before anything is written, as the reference does. */
async function repair(image: ParallelsImage, context: OpenContext): Promise<void> {
  try {
    await checkImage(image, {
      repair: { leaks: true, errors: true },
      report: (line) => context.say?.(line),
    });
  } catch (error) {
    throw error instanceof ImageError ? error.prefixed('Could not repair corrupted image: ') : error;
  }
}

function checkMode(mode: unknown): void {
  if (mode === undefined || mode === 'falloc' || mode === 'truncate') return;
  throw new ImageError('invalid', `invalid parameter value: ${String(mode)}`);
}

export async function openParallels(context: OpenContext): Promise<FormatNode> {
  const { file, writable, forCheck } = context;
  checkMode(context.options['prealloc-mode']);
  const image = await readImage(file);
  if (!writable) return new ParallelsNode(image, undefined, await readBitmaps(image));
  if (image.header.extOff !== 0n) context.warn('Format Extension ignored in RW mode');
  let clusters = new Clusters(image);
  if (!forCheck) {
    const { dataEnd, overlaps } = await clusters.scan();
    if (image.unclean || !image.dataOffOk || overlaps || dataEnd > image.fileSize) {
      await repair(image, context);
      clusters = new Clusters(image);
      await clusters.scan();
    }
  }
  return new ParallelsNode(image, new ParallelsWriter(image, clusters, context.backed === true), undefined);
}
