/** qcow2 images in memory, opened by hand, and dumped for the reference to look at. */

import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { qcow2 } from '../../src/engine/formats/qcow2/index.js';
import type { Qcow2Node } from '../../src/engine/formats/qcow2/node.js';
import type { FormatNode } from '../../src/engine/node/driver.js';
import { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import type { Storage } from '../../src/engine/storage/storage.js';
import { reference, run } from '../support/reference.js';

/** Keeps a storage open when the node layer closes it. */
function shared(storage: Storage): Storage {
  return new Proxy(storage, {
    get(target, property) {
      if (property === 'close') return async () => {};
      const value = Reflect.get(target, property, target) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

export interface Made {
  readonly file: MemoryStorage;
  readonly dataFile?: MemoryStorage;
}

export async function createImage(
  size: number,
  options: OptionValues = {},
  backing?: { filename: string; format?: string },
): Promise<Made> {
  const file = new MemoryStorage(0, { filename: 'test.qcow2' });
  let dataFile: MemoryStorage | undefined;
  await qcow2.create!({
    file,
    filename: 'test.qcow2',
    size,
    options,
    ...(backing === undefined ? {} : { backing }),
    createExtra: async () => {
      throw new Error('not used');
    },
    openExtra: async (filename) => {
      dataFile = new MemoryStorage(0, { filename });
      return shared(dataFile);
    },
  });
  return dataFile === undefined ? { file } : { file, dataFile };
}

export interface OpenedQcow2 extends Made {
  readonly image: ImageNode;
  readonly node: Qcow2Node;
}

/** `wrap`: what is put around the storages (a recorder). */
export async function openImage(
  made: { readonly file: Storage; readonly dataFile?: Storage },
  options: {
    readonly writable?: boolean;
    readonly backing?: ImageNode;
    readonly forCheck?: boolean;
    readonly metadataOnly?: boolean;
    readonly warnings?: string[];
    /** Lines for the user. */
    readonly said?: string[];
    /** Runtime options. */
    readonly options?: OptionValues;
    /** Caches of the fewest tables. */
    readonly smallCaches?: boolean;
  } = {},
): Promise<{ image: ImageNode; node: Qcow2Node }> {
  const writable = options.writable ?? false;
  const file = shared(made.file);
  const node: FormatNode = await qcow2.open({
    file,
    writable,
    options: {
      ...options.options,
      ...(options.smallCaches === true ? { 'l2-cache-size': 1, 'refcount-cache-size': 1 } : {}),
    },
    forCheck: options.forCheck ?? false,
    metadataOnly: options.metadataOnly ?? false,
    openChild: async (_child, recorded) =>
      recorded === undefined || made.dataFile === undefined ? undefined : shared(made.dataFile),
    warn: (text) => options.warnings?.push(text),
    say: (line) => options.said?.push(line),
  });
  const image = new ImageNode({
    filename: made.file.filename,
    path: undefined,
    driver: qcow2,
    format: node,
    file,
    backing: options.backing,
    writable,
  });
  return { image, node: node as Qcow2Node };
}

export async function readAll(image: ImageNode): Promise<Uint8Array> {
  const out = new Uint8Array(image.size);
  const step = 1 << 20;
  for (let at = 0; at < out.length; at += step) await image.read(at, out.subarray(at, at + step));
  return out;
}

/** Writes the image (and its data file) into a folder for the reference. */
export function dump(made: Made, folder: string, name = 'dumped.qcow2'): string {
  const path = join(folder, name);
  writeFileSync(path, made.file.bytes());
  if (made.dataFile !== undefined) writeFileSync(join(folder, made.dataFile.filename), made.dataFile.bytes());
  return path;
}

export function load(path: string): MemoryStorage {
  return new MemoryStorage(readFileSync(path), { filename: path });
}

export function qemuImg(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return run(reference.qemuImg!, args);
}
/** As `qemuImg`, run in a folder: the reference looks for data files where it runs. */
export function qemuImgIn(
  cwd: string,
  ...args: string[]
): { status: number | null; stdout: string; stderr: string } {
  return run(reference.qemuImg!, args, { cwd });
}
export function qemuIo(path: string, ...commands: string[]): void {
  const done = run(reference.qemuIo!, [
    ...commands.flatMap((command) => ['-c', command]),
    '-f',
    'qcow2',
    path,
  ]);
  if (done.status !== 0) throw new Error(`qemu-io: ${done.stdout}${done.stderr}`);
}

/** What the reference's check says, or an empty string where it finds nothing. */
export function checkReport(path: string): string {
  const done = qemuImgIn(dirname(path), 'check', '-f', 'qcow2', path);
  return done.status === 0 ? '' : `${done.status}: ${done.stdout}${done.stderr}`;
}

/** Deterministic pseudo-random numbers: mulberry32. */
export function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** Bytes that say which block of 512 bytes they are and which write they come from: aliasing shows. */
export function stamp(at: number, length: number, salt: number): Uint8Array {
  const out = new Uint8Array(length);
  for (let i = 0; i < length; i++) {
    const block = Math.floor((at + i) / 512);
    out[i] = (block * 31 + (block >>> 8) * 17 + salt * 101 + (i & 3)) & 0xff;
  }
  return out;
}
