/**
 * `check`, which the reference does not have for this format: checksums, the footer at the end, and whether each block has a
 * place of its own in the file. Nothing is repaired.
 */
import { ImageError } from '../../error.js';
import type { CheckContext, CheckFacet, CheckResult } from '../../node/driver.js';
import { DiskType, Footer, SECTOR, UNUSED, VERSION } from './layout.js';
import { type Blocks, roundedSize, type VpcImage } from './open.js';

/** Places of blocks looked at in one pass over the table: 16 MiB. */
const PLACES_IN_PASS = 4 * 1024 * 1024;
/** Findings of one kind are told one by one up to here, and counted after. */
const MAX_LINES = 1000;
/** Fixed disks of Virtual PC before 2004 have a footer that lacks its last byte. */
const SHORT_FOOTER = 511;

class Findings {
  readonly #context: CheckContext;
  readonly #told = new Map<string, number>();
  corruptions = 0;

  constructor(context: CheckContext) {
    this.#context = context;
  }

  error(kind: string, text: string): void {
    this.corruptions++;
    const told = this.#told.get(kind) ?? 0;
    if (told < MAX_LINES) this.#context.report(`ERROR: ${text}`);
    else if (told === MAX_LINES) this.#context.report('ERROR: more of the kind are not listed');
    this.#told.set(kind, told + 1);
  }
}

export class VpcChecker implements CheckFacet {
  readonly #image: VpcImage;

  constructor(image: VpcImage) {
    this.#image = image;
  }

  async check(context: CheckContext): Promise<CheckResult> {
    if (context.repair.leaks || context.repair.errors) {
      throw new ImageError('unsupported', 'Check failed: vpc images can be checked, but not repaired', {
        errno: 'ENOTSUP',
      });
    }
    const findings = new Findings(context);
    const { blocks, footer, footerSound, size, file } = this.#image;
    if (!footerSound) findings.error('footer', 'the checksum of the footer is wrong');
    if (footer.fileFormatVersion >>> 16 !== VERSION >>> 16) {
      findings.error('footer', `the format version is ${footer.fileFormatVersion >>> 16}, not 1`);
    }
    const none = { checkErrors: 0, leaks: 0, corruptionsFixed: 0, leaksFixed: 0 };
    if (blocks === undefined) {
      // A fixed disk that was found by its footer ends where that begins.
      if (size > roundedSize(file) - Footer.size) {
        findings.error('fixed', `the disk has ${size} bytes, and the file ends before`);
      }
      return { ...none, corruptions: findings.corruptions };
    }
    await this.#checkFooterCopy(findings);
    if (!blocks.headerSound) findings.error('header', 'the checksum of the dynamic disk header is wrong');
    const allocated = await this.#checkBlocks(blocks, findings, context);
    return {
      ...none,
      corruptions: findings.corruptions,
      leaks: this.#leaks(blocks, allocated, context),
      imageEndOffset: blocks.end + Footer.size,
      totalClusters: Math.ceil(size / blocks.blockSize),
      allocatedClusters: allocated,
    };
  }

  /** The footer proper: the copy at the start is what the image was opened by. */
  async #checkFooterCopy(findings: Findings): Promise<void> {
    const { file, footerBytes } = this.#image;
    for (const [at, length] of [
      [roundedSize(file) - Footer.size, Footer.size],
      [file.size - SHORT_FOOTER, SHORT_FOOTER],
    ] as const) {
      if (at < 0) continue;
      const tail = new Uint8Array(length);
      await file.read(at, tail);
      if (Buffer.compare(tail, footerBytes.subarray(0, length)) === 0) return;
    }
    findings.error(
      'footer',
      'the footer at the end of the file is missing, or differs from its copy at the start',
    );
  }

  async #checkBlocks(blocks: Blocks, findings: Findings, context: CheckContext): Promise<number> {
    const { table, slot, metadataEnd } = blocks;
    const fileEnd = roundedSize(this.#image.file);
    let allocated = 0;
    await table.scan((page, first, count) => {
      this.#pause(context, first, table.count);
      for (let i = 0; i < count; i++) {
        const entry = page[i]!;
        if (entry === UNUSED) continue;
        allocated++;
        const at = entry * SECTOR;
        const name = `block ${first + i} at offset ${at}`;
        if (at < metadataEnd) findings.error('metadata', `${name} overlaps the header or the table`);
        if (at + slot > fileEnd) findings.error('outside', `${name} reaches past the end of the file`);
      }
    });
    await this.#checkOverlaps(blocks, fileEnd, findings, context);
    return allocated;
  }

  /**
   * Blocks are as long as they are: in a run of sectors as long as one, only one can begin. Each run remembers which; blocks
   * that begin in neighbouring runs are compared.
   */
  async #checkOverlaps(
    { table, slot }: Blocks,
    fileEnd: number,
    findings: Findings,
    context: CheckContext,
  ): Promise<void> {
    const sectors = slot / SECTOR;
    const places = Math.ceil(fileEnd / slot);
    for (let from = 0; from < places; from += PLACES_IN_PASS) {
      const to = Math.min(places, from + PLACES_IN_PASS);
      // One place more on either side, so that neighbours are seen; +1, so that 0 is "none".
      const starts = new Float64Array(to - from + 2);
      await table.scan((page, first, count) => {
        this.#pause(context, first, table.count);
        for (let i = 0; i < count; i++) {
          const entry = page[i]!;
          if (entry === UNUSED) continue;
          const place = Math.floor(entry / sectors) - from + 1;
          if (place < 0 || place >= starts.length) continue;
          const clash = (other: number | undefined) =>
            other !== undefined && other > 0 && Math.abs(other - 1 - entry) < sectors;
          if (clash(starts[place - 1]) || clash(starts[place]) || clash(starts[place + 1])) {
            // Those of the places at the edges are told in the pass that they belong to.
            if (place >= 1 && place <= to - from) {
              findings.error(
                'overlap',
                `block ${first + i} at offset ${entry * SECTOR} overlaps another block`,
              );
            }
          } else starts[place] = entry + 1;
        }
      });
    }
  }

  #pause({ signal, progress }: CheckContext, done: number, total: number): void {
    if (signal?.aborted) throw new ImageError('cancelled', 'Operation cancelled');
    progress?.(done, total);
  }

  /** Whole blocks' worth of the file that nothing refers to: what a crash leaves behind. */
  #leaks({ slot, metadataEnd, header }: Blocks, allocated: number, context: CheckContext): number {
    const space = roundedSize(this.#image.file) - Footer.size - metadataEnd - allocated * slot;
    // Parent locators are of a few sectors, and by some writers kept between the blocks.
    const differencing = this.#image.footer.diskType === DiskType.differencing;
    const slack = differencing ? header.parentLocators.length * SECTOR : 0;
    const leaks = Math.max(0, Math.floor((space - slack) / slot));
    if (leaks > 0) context.report(`Leaked space: ${leaks} blocks of the file are not in use`);
    return leaks;
  }
}
