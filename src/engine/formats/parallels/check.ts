/** `check` and its repairs, in the reference's order and with its words. */
import { errnoText, ImageError } from '../../error.js';
import type { CheckContext, CheckFacet, CheckResult } from '../../node/driver.js';
import { SparseBits } from '../entry-table.js';
import type { ParallelsImage } from './image.js';
import { SECTOR } from './layout.js';

/** Clusters whose use is kept track of at once: 32 MiB of bits. Larger files take more passes. */
const WINDOW = 2 ** 28;
/** Clusters are copied in pieces of this many bytes. */
const PIECE = 1024 * 1024;
/** Entries past the end of the file are told one by one up to this many. */
const MAX_MISSING_LINES = 65_536;

class Check {
  readonly #image: ParallelsImage;
  readonly #context: CheckContext;
  readonly result: CheckResult = {
    checkErrors: 0,
    corruptions: 0,
    leaks: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
  };
  #imageEnd = 0;

  constructor(image: ParallelsImage, context: CheckContext) {
    this.#image = image;
    this.#context = context;
  }

  get #fixes(): boolean {
    return this.#context.repair.errors;
  }

  #found(what: string): void {
    this.#context.report(`${this.#fixes ? 'Repairing' : 'ERROR'} ${what}`);
    this.result.corruptions++;
    if (this.#fixes) this.result.corruptionsFixed++;
  }

  #breathe(done: number): void {
    if (this.#context.signal?.aborted === true) throw new ImageError('cancelled', 'Operation cancelled');
    this.#context.progress?.(done * this.#image.clusterSize, this.#image.size);
  }

  async run(): Promise<CheckResult> {
    const image = this.#image;
    if (image.unclean) {
      this.#found('image was not closed correctly');
      if (this.#fixes) image.unclean = false;
    }
    if (!image.checkDataOff()) {
      this.#found('data_off field has incorrect value');
      if (this.#fixes) {
        image.header.dataOff = image.dataStart / SECTOR;
        await image.writeHeader();
        await image.file.flush();
        image.checkDataOff();
      }
    }
    await this.#outside();
    await this.#leak(true);
    const busy = await this.#duplicates();
    await this.#statistics();
    if (image.bat.dirty) await image.bat.write();
    if (this.#fixes || this.#context.repair.leaks) await image.file.flush();
    // The reference gives up where the last used entry of the BAT is a duplicate that stays.
    if (busy) throw new ImageError('corrupt', errnoText('EBUSY'), { errno: 'EBUSY' });
    return this.result;
  }

  /** Entries whose clusters are not in the file; finds where the last of the others ends. */
  async #outside(): Promise<void> {
    const { bat, clusterSize, fileSize, metadataEnd } = this.#image;
    let highest = 0;
    let dataEnd = this.#image.dataEnd ?? this.#image.dataStart;
    const waste: number[] = [];
    const look = (index: number, entry: number) => {
      const place = this.#image.placeOf(entry);
      const end = place + clusterSize;
      if (end > dataEnd && end !== Number.POSITIVE_INFINITY) dataEnd = end;
      if (end > fileSize || (entry !== 0 && place < metadataEnd)) {
        this.#found(`cluster ${index} is outside image`);
        return true;
      }
      if (place > highest) highest = place;
      return false;
    };
    const end = await bat.scan(async (entries, first, count) => {
      this.#breathe(first);
      waste.length = 0;
      for (let i = 0; i < count; i++) if (look(first + i, entries[i]!)) waste.push(first + i);
      if (!this.#fixes || waste.length === 0) return;
      await this.#dropExtension();
      for (const index of waste) if (entries[index - first] !== 0) bat.set(index, 1, 0, 0);
      await bat.write();
    });
    this.#missing(end, look);
    if (this.#fixes) await this.#image.file.flush();
    // Where nothing is left in the file, what the BAT said when it was first looked at counts, as in the reference.
    this.#imageEnd = highest === 0 ? dataEnd : highest + clusterSize;
    this.#image.dataEnd = this.#imageEnd;
    this.result.imageEndOffset = this.#imageEnd;
  }

  /** Entries that the file does not have read as 0: not used, and outside all the same where not even one cluster fits. */
  #missing(end: number, look: (index: number, entry: number) => boolean): void {
    const { bat, clusterSize, fileSize } = this.#image;
    const missing = bat.count - end;
    if (missing === 0 || clusterSize <= fileSize) return;
    if (missing <= MAX_MISSING_LINES) {
      for (let index = end; index < bat.count; index++) look(index, 0);
      return;
    }
    this.#found(`clusters ${end} to ${bat.count - 1} are outside image`);
    this.result.corruptions += missing - 1;
    if (this.#fixes) this.result.corruptionsFixed += missing - 1;
  }

  /** What a repair changes is not what the extension was made for, and may be its own place. */
  async #dropExtension(): Promise<void> {
    const { file, header } = this.#image;
    if (header.extOff === 0n) return;
    header.extOff = 0n;
    await this.#image.writeHeader();
    await file.flush();
  }

  /** What the file has after the last cluster. */
  async #leak(counts: boolean): Promise<void> {
    const { file, clusterSize, fileSize, header } = this.#image;
    const surplus = fileSize - this.#imageEnd;
    if (surplus <= 0) return;
    const fixes = this.#context.repair.leaks;
    const clusters = Math.ceil(surplus / clusterSize);
    if (counts) {
      this.#context.report(
        `${fixes ? 'Repairing' : 'ERROR'} space leaked at the end of the image ${surplus}`,
      );
      this.result.leaks += clusters;
    }
    if (!fixes) return;
    if (header.extOff * BigInt(SECTOR) + BigInt(clusterSize) > BigInt(this.#imageEnd)) {
      // The extension goes with it; nothing may point there after.
      await this.#dropExtension();
    }
    if (header.dataOff * SECTOR > this.#imageEnd) {
      // All clusters are before what the header calls the data area: after it there is nothing.
      header.dataOff = this.#image.leastDataOff;
      this.#image.dataStart = header.dataOff * SECTOR;
      await this.#image.writeHeader();
      await file.flush();
    }
    await file.truncate(this.#imageEnd);
    if (counts) this.result.leaksFixed += clusters;
  }

  /** Entries that point to one cluster. All but the first get a copy of it. Gives whether the last of all used entries is one. */
  async #duplicates(): Promise<boolean> {
    const { bat, clusterSize, dataStart, metadataEnd } = this.#image;
    // The reference's count: all is well where not even one cluster is in the data area.
    if (Math.trunc((this.#imageEnd - dataStart) / clusterSize) === 0) return false;
    // Its numbers, too: rounded towards the start of the data area, before which there are clusters in broken images.
    const bias = Math.ceil(dataStart / clusterSize);
    const clusters = Math.ceil(Math.max(0, this.#imageEnd - dataStart) / clusterSize) + bias;
    let lastUsed = -1;
    let lastDuplicate = -1;
    for (let from = 0; from < clusters; from += WINDOW) {
      const used = new SparseBits();
      await bat.scan(async (entries, first, count) => {
        this.#breathe(first);
        for (let i = 0; i < count; i++) {
          const entry = entries[i]!;
          if (entry === 0) continue;
          const place = this.#image.placeOf(entry);
          const cluster = Math.trunc((place - dataStart) / clusterSize) + bias;
          const here = cluster >= from && cluster < Math.min(from + WINDOW, clusters);
          if (!here || place < metadataEnd) continue;
          lastUsed = Math.max(lastUsed, first + i);
          if (used.add(cluster - from)) continue;
          this.#found(`duplicate offset in BAT entry ${first + i}`);
          lastDuplicate = Math.max(lastDuplicate, first + i);
          if (this.#fixes) await this.#copyCluster(first + i, place);
        }
      });
    }
    return !this.#fixes && lastDuplicate >= 0 && lastDuplicate === lastUsed;
  }

  /** Gives an entry a cluster of its own with the same content, at the end of the image. */
  async #copyCluster(index: number, from: number): Promise<void> {
    const { bat, file, clusterSize, dataStart, entryUnit, isExt } = this.#image;
    const base = isExt ? 0 : dataStart;
    const to = base + Math.ceil((this.#imageEnd - base) / clusterSize) * clusterSize;
    const entry = to / entryUnit;
    if (entry > 0xffff_ffff) throw new ImageError('no-space', errnoText('EFBIG'), { errno: 'EFBIG' });
    await this.#dropExtension();
    const piece = new Uint8Array(Math.min(PIECE, clusterSize));
    for (let done = 0; done < clusterSize; done += piece.length) {
      if (this.#context.signal?.aborted === true) throw new ImageError('cancelled', 'Operation cancelled');
      const part = piece.subarray(0, Math.min(piece.length, clusterSize - done));
      await file.read(from + done, part);
      await file.write(to + done, part);
    }
    await file.flush();
    if (bat.page(index) === undefined) await bat.load(index);
    bat.set(index, 1, entry, 0);
    await bat.write();
    this.#imageEnd = to + clusterSize;
    this.result.imageEndOffset = this.#imageEnd;
  }

  async #statistics(): Promise<void> {
    const { bat, clusterSize } = this.#image;
    let before = 0;
    let allocated = 0;
    let fragmented = 0;
    await bat.scan((entries, _first, count) => {
      for (let i = 0; i < count; i++) {
        const entry = entries[i]!;
        const place = this.#image.placeOf(entry);
        if (entry === 0 || place + clusterSize > this.#imageEnd) {
          before = 0;
          continue;
        }
        if (before !== 0 && before + clusterSize !== place) fragmented++;
        before = place;
        allocated++;
      }
    });
    this.result.totalClusters = bat.count;
    this.result.allocatedClusters = allocated;
    this.result.fragmentedClusters = fragmented;
    this.result.compressedClusters = 0;
  }
}

export function checkImage(image: ParallelsImage, context: CheckContext): Promise<CheckResult> {
  return new Check(image, context).run();
}

/** `quiesce`: brings the driver's own metadata to the file first. */
export function parallelsChecker(image: ParallelsImage, quiesce: () => Promise<void>): CheckFacet {
  return {
    async check(context) {
      await quiesce();
      return checkImage(image, context);
    },
  };
}
