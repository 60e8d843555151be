/** Everything that may be done with an image, done to a mutant. ImageErrors are answers; anything else is a bug. */
import { ImageError } from '../../src/engine/error.js';
import type { CheckResult, FormatDriver, FormatNode, OpenContext } from '../../src/engine/node/driver.js';
import { ImageNode } from '../../src/engine/node/image.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import type { Storage } from '../../src/engine/storage/storage.js';
import type { Mutant } from './mutate.js';
import type { Random } from './random.js';

const MAX_STEPS = 2000;
const MAX_READ = 4 * 1024 * 1024;
const PIECE = 256 * 1024;
/** Lines of a check that has had a lot to do. */
const MANY_LINES = 10_000;
/** Host bytes that a mutant may come to hold by writes and repairs. */
const MAX_WRITTEN = 64 * 1024 * 1024;

/** Runs `work`; false where it failed as it may. An internal error says that the engine contradicted itself. */
async function allowed(work: () => unknown): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof ImageError && error.kind !== 'internal') return false;
    throw error;
  }
}

interface Opened {
  readonly node: FormatNode;
  readonly file: MemoryStorage;
  readonly children: readonly MemoryStorage[];
}

async function isClosed(storage: Storage): Promise<boolean> {
  try {
    await storage.read(0, new Uint8Array(1));
    return false;
  } catch {
    return true;
  }
}

/** Opens the mutant; what a failed open had opened must be closed again. */
async function open(
  driver: FormatDriver,
  mutant: Mutant,
  how: Partial<Pick<OpenContext, 'writable' | 'forCheck' | 'metadataOnly'>> = {},
  content: MemoryStorage | Uint8Array = mutant.image,
): Promise<Opened | undefined> {
  const writable = how.writable ?? false;
  const options = { writable, capacity: MAX_WRITTEN };
  const file =
    content instanceof MemoryStorage ? content.clone(options) : new MemoryStorage(content, options);
  const children: MemoryStorage[] = [];
  const context: OpenContext = {
    file,
    writable,
    options: {},
    forCheck: false,
    metadataOnly: false,
    openChild: async (_child, recorded, childOptions) => {
      if (recorded === undefined) return undefined;
      const bytes = mutant.others.get(recorded);
      if (bytes === undefined) throw new ImageError('denied', `Could not open '${recorded}': not allowed`);
      const storage = new MemoryStorage(bytes, {
        writable: childOptions?.writable ?? writable,
        capacity: MAX_WRITTEN,
      });
      children.push(storage);
      return storage;
    },
    warn: () => undefined,
    ...how,
  };
  let node: FormatNode | undefined;
  const worked = await allowed(async () => {
    node = await driver.open(context);
  });
  if (node !== undefined) return { node, file, children };
  if (worked) throw new Error('open returned nothing');
  for (const child of children)
    if (!(await isClosed(child))) throw new Error('a failed open left a file open');
  return undefined;
}

async function close({ node, children }: Opened): Promise<void> {
  await allowed(() => node.close());
  for (const child of children) if (!(await isClosed(child))) throw new Error('close left a file open');
}

function checkSize(node: FormatNode): void {
  if (!Number.isSafeInteger(node.size) || node.size < 0) throw new Error(`size is ${node.size}`);
}

/** Walks the map; every answer must make progress and stay within what was asked. */
async function walk(node: FormatNode): Promise<void> {
  let at = 0;
  for (let step = 0; step < MAX_STEPS && at < node.size; step++) {
    const range = { at, length: node.size - at };
    let length = Math.min(range.length, PIECE);
    await allowed(async () => {
      const extent = await node.map(range);
      if (!(extent.length > 0 && extent.length <= range.length && Number.isSafeInteger(extent.length))) {
        throw new Error(`map of ${range.length} at ${at} answered ${extent.kind} of ${extent.length}`);
      }
      if (extent.kind === 'data' && !(Number.isSafeInteger(extent.at) && extent.at >= 0)) {
        throw new Error(`map at ${at} answered data at ${extent.at}`);
      }
      length = extent.length;
    });
    at += length;
  }
}

async function readAt(image: ImageNode, at: number, length: number): Promise<Uint8Array | undefined> {
  const into = new Uint8Array(length);
  return (await allowed(() => image.read(at, into))) ? into : undefined;
}

/** Reads the start, the end, and pieces between; the same range in two ways must read the same. */
async function read(image: ImageNode, random: Random): Promise<void> {
  const { size } = image;
  let left = MAX_READ;
  for (let at = 0; at < size && left > 0; at += PIECE, left -= PIECE) {
    await readAt(image, at, Math.min(PIECE, size - at));
  }
  for (let i = 0; i < 6; i++) {
    const length = Math.min(size, 1 + random.below(i % 2 === 0 ? 3000 : 2 * PIECE));
    if (length === 0) return;
    // Numbers beyond 2^32 too, and the last byte.
    const at = i === 0 ? size - length : Math.floor((random.u32() / 2 ** 32) * (size - length));
    const whole = await readAt(image, at, length);
    const half = Math.floor(length / 2);
    if (whole === undefined || half === 0) continue;
    const first = await readAt(image, at, half);
    const second = await readAt(image, at + half, length - half);
    if (first === undefined || second === undefined)
      throw new Error(`reads at ${at} fail in two pieces only`);
    if (!Buffer.concat([first, second]).equals(whole)) throw new Error(`reads at ${at} differ in two pieces`);
  }
}

function imageOf(driver: FormatDriver, { node, file }: Opened, writable = false): ImageNode {
  return new ImageNode({
    filename: 'mutant',
    path: undefined,
    driver,
    format: node,
    file,
    backing: undefined,
    writable,
  });
}

async function look(driver: FormatDriver, opened: Opened, random: Random): Promise<void> {
  const { node } = opened;
  checkSize(node);
  await allowed(() => node.info());
  await allowed(() => node.bitmaps?.());
  await allowed(() => node.bitmapStore?.counts());
  await walk(node);
  await read(imageOf(driver, opened), random);
  const { snapshots } = node;
  if (snapshots === undefined) return;
  for (const snapshot of snapshots.list().slice(0, 4)) {
    await allowed(async () => {
      const view = await snapshots.view(snapshot);
      checkSize(view);
      await walk(view);
      await read(imageOf(driver, { ...opened, node: view }), random);
    });
  }
}

interface Checked {
  readonly result: CheckResult;
  readonly lines: number;
  /** Those among the corruptions that are copied flags which contradict a refcount. */
  readonly flags: number;
}

async function checkOnce(opened: Opened, repair: boolean): Promise<Checked | undefined> {
  let lines = 0;
  let flags = 0;
  let result: CheckResult | undefined;
  await allowed(async () => {
    result = await opened.node.checker?.check({
      repair: { leaks: repair, errors: repair },
      report: (line) => {
        lines++;
        if (line.startsWith('ERROR OFLAG_COPIED')) flags++;
      },
    });
  });
  if (lines > 1_000_000) throw new Error(`check reported ${lines} lines`);
  for (const [name, count] of Object.entries(result ?? {})) {
    if (!Number.isSafeInteger(count) || count < 0) throw new Error(`check says ${name}: ${count}`);
  }
  return result === undefined ? undefined : { result, lines, flags };
}

/**
 * Check; then repair all on a copy, three times, whether it succeeds or gives up. After each the image must open, must be
 * checkable where it was before, and must have no more corruptions than before.
 */
async function check(driver: FormatDriver, mutant: Mutant): Promise<void> {
  const plain = await open(driver, mutant, { forCheck: true });
  if (plain === undefined) return;
  const hasChecker = plain.node.checker !== undefined;
  let known = hasChecker ? (await checkOnce(plain, false))?.result.corruptions : undefined;
  await close(plain);
  if (!hasChecker) return;

  let content: MemoryStorage | Uint8Array = mutant.image;
  for (let repairs = 0; repairs < 3; repairs++) {
    const opened = await open(driver, mutant, { forCheck: true, writable: true }, content);
    if (opened === undefined) {
      if (repairs > 0) throw new Error('a repaired image cannot be opened');
      return;
    }
    const checked = await checkOnce(opened, true);
    await close(opened);
    content = opened.file;
    const repaired = await open(driver, mutant, { forCheck: true }, content);
    if (repaired === undefined) throw new Error('a repaired image cannot be opened');
    const seen = await checkOnce(repaired, false);
    const after = seen?.result.corruptions;
    await close(repaired);
    // One that gives up between the refcounts and the copied flags leaves flags that no longer match.
    const halfWay = checked === undefined ? (seen?.flags ?? 0) : 0;
    if (known !== undefined && after === undefined) throw new Error('a repaired image cannot be checked');
    if (known !== undefined && after! - halfWay > known) {
      throw new Error(`a repair has made ${known} corruptions ${after}`);
    }
    if (checked === undefined) return;
    known = after;
    // Tens of thousands of damaged snapshots take seconds, as they do in the reference: once is enough.
    if (checked.lines > MANY_LINES) repairs = Math.max(repairs, 1);
  }
}

/** Writes, zeroes and discards here and there. What is read back is not compared: damaged metadata may alias. */
async function write(driver: FormatDriver, mutant: Mutant, random: Random): Promise<void> {
  const opened = await open(driver, mutant, { writable: true });
  if (opened === undefined) return;
  const image = imageOf(driver, opened, true);
  if (opened.node.prepareWrite !== undefined && image.size > 0) {
    for (let i = 0; i < 8; i++) {
      const length = Math.min(image.size, 1 + random.below(i % 3 === 0 ? 200_000 : 5000));
      const at = random.once(4)
        ? image.size - length
        : Math.floor((random.u32() / 2 ** 32) * (image.size - length));
      await allowed(() => image.write(at, random.bytes(Math.min(length, 512)).slice()));
      if (i === 2) await allowed(() => image.zero({ at, length }));
      if (i === 3) await allowed(() => image.discard({ at, length }));
      if (i === 4) await readAt(image, at, length);
    }
    await allowed(() => image.flush());
  }
  await close(opened);
}

/** The whole exercise. Returns whether the mutant could be opened at all. */
export async function exercise(driver: FormatDriver, mutant: Mutant, random: Random): Promise<boolean> {
  driver.probe(paddedHead(mutant.image), 'mutant', mutant.image.length);
  const described = await open(driver, mutant, { metadataOnly: true });
  if (described !== undefined) {
    checkSize(described.node);
    await allowed(() => described.node.info());
    await close(described);
  }
  const opened = await open(driver, mutant);
  if (opened !== undefined) {
    await look(driver, opened, random);
    await close(opened);
  }
  await check(driver, mutant);
  await write(driver, mutant, random);
  return opened !== undefined;
}

export function paddedHead(image: Uint8Array): Uint8Array {
  const head = new Uint8Array(2048);
  head.set(image.subarray(0, 2048));
  return head;
}
