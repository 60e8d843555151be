/** The images that the cases work on, each made when it is first asked for. */
import { execFileSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, existsSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';

export const MiB = 1024 * 1024;
const BLOCK = 4 * MiB;

export interface Sizes {
  /** Of images that are copied or compared, MiB. */
  readonly plain: number;
  /** Of those that are compressed, MiB. */
  readonly compressed: number;
  readonly scatteredClusters: number;
  /** Guest size of the image whose metadata is all allocated. */
  readonly metadata: string;
  /** Requests of `bench`. */
  readonly requests: number;
}

export class Inputs {
  readonly folder: string;
  readonly sizes: Sizes;
  /** What a run writes; removed or made anew before each. */
  readonly out: string;

  constructor(folder: string, sizes: Sizes) {
    this.folder = folder;
    this.sizes = sizes;
    this.out = this.at('out');
  }

  at(name: string): string {
    return join(this.folder, name);
  }

  qemu(...args: string[]): void {
    execFileSync('qemu-img', args, { stdio: 'ignore' });
  }

  /** Takes away what a run wrote. */
  clear(): void {
    rmSync(this.out, { force: true });
    this.#readyMemory();
  }

  /** Copies an input to `out`. */
  copy(path: string): void {
    execFileSync('cp', ['--sparse=always', path, this.out]);
    // What was written before would be written back during the run.
    execFileSync('sync');
    this.#readyMemory();
  }

  /**
   * Has memory ready for what the next run writes: a virtual machine's host takes back what lies idle, and its giving it
   * again would be the greater part of the time.
   */
  #readyMemory(): void {
    const path = this.at('memory');
    fill(path, this.sizes.plain * MiB, () => {});
    rmSync(path);
  }

  /** The file of that name, made by `make` where it is not there yet. */
  #once(name: string, make: (path: string) => void): string {
    const path = this.at(name);
    if (!existsSync(path)) make(path);
    return path;
  }

  /** Incompressible content: every byte must move. */
  random(name = 'random.raw', mib = this.sizes.plain): string {
    return this.#once(name, (path) => {
      fill(path, mib * MiB, (block) => {
        randomFillSync(block);
      });
    });
  }

  /** Content that compresses about three to one, as file systems' often does: random words of 24 bits among text. */
  text(): string {
    return this.#once('text.raw', (path) => {
      let seed = 1;
      fill(path, this.sizes.compressed * MiB, (block) => {
        for (let i = 0; i < block.byteLength; i += 16) {
          seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
          block.write('the disk image ', i, 'latin1');
          block.writeUInt32LE(seed, i + (seed % 13));
        }
      });
    });
  }

  /** What the reference converts `source` to. */
  converted(source: string, name: string, ...args: string[]): string {
    return this.#once(name, (path) => this.qemu('convert', ...args, source, path));
  }

  /** A qcow2 with data in every second cluster, written in a fixed pseudo-random order: guest order is not host order. */
  scattered(): string {
    const count = this.sizes.scatteredClusters;
    return this.#once('scattered.qcow2', (path) => {
      this.qemu('create', '-f', 'qcow2', path, `${count * 2 * 64}K`);
      const commands: string[] = [];
      let index = 0;
      for (let i = 0; i < count; i++) {
        index = (index + 7919) % count;
        commands.push(`write -q -P ${(index % 255) + 1} ${index * 2 * 64}k 64k`);
      }
      this.#io(path, commands);
    });
  }

  /** A qcow2 with all its metadata allocated, and no data. */
  metadata(): string {
    const options = ['-f', 'qcow2', '-o', 'preallocation=metadata'];
    return this.#once('big.qcow2', (path) => this.qemu('create', ...options, path, this.sizes.metadata));
  }

  /** The same with a snapshot `s`. */
  withSnapshot(): string {
    const source = this.metadata();
    return this.#once('snap.qcow2', (path) => {
      execFileSync('cp', ['--sparse=always', source, path]);
      this.qemu('snapshot', '-c', 's', path);
    });
  }

  /** A backing file of half the usual size; `other` has other content. */
  base(name: 'base' | 'other' = 'base'): string {
    const source = this.random(`${name}.raw`, this.sizes.plain / 2);
    return this.converted(source, `${name}.qcow2`, '-f', 'raw', '-O', 'qcow2');
  }

  /** An image over `base` that has a quarter of the clusters itself. */
  overlay(): string {
    this.base();
    return this.#once('top.qcow2', (path) => {
      this.qemu('create', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', path);
      const commands: string[] = [];
      for (let mib = 0; mib < this.sizes.plain / 2; mib += 4) {
        commands.push(`write -q -P ${(mib % 250) + 1} ${mib}M 1M`);
      }
      this.#io(path, commands);
    });
  }

  #io(path: string, commands: readonly string[]): void {
    execFileSync('qemu-io', ['-t', 'unsafe', path], {
      input: `${commands.join('\n')}\n`,
      stdio: ['pipe', 'ignore', 'ignore'],
    });
  }
}

function fill(path: string, bytes: number, next: (block: Buffer) => void): void {
  const fd = openSync(path, 'w');
  const block = Buffer.alloc(BLOCK);
  for (let done = 0; done < bytes; done += BLOCK) {
    next(block);
    writeSync(fd, block, 0, Math.min(BLOCK, bytes - done), done);
  }
  closeSync(fd);
}
