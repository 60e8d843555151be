/**
 * `npm run bench [-- --only WORD] [-- --pairs N] [-- --size MIB] [-- --short]`: time of the reference / time of ours, whole process,
 * client start included, images in the page cache. Needs the reference; without it, it says so and ends.
 */
import { execFileSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { daemonCases } from './daemon.js';
import { type Case, compare, printRow } from './harness.js';

const { values } = parseArgs({
  options: {
    only: { type: 'string', default: '' },
    pairs: { type: 'string', default: '5' },
    size: { type: 'string', default: '2048' },
    /** Small images, one pair: shows that the bench works, not how fast anything is. */
    short: { type: 'boolean', default: false },
  },
});
const pairs = values.short ? 1 : Number(values.pairs);
/** Of images that are copied or compared; those that are compressed have 1 GiB. */
const sizeMiB = values.short ? 32 : Number(values.size);
const COMPRESSED_MIB = values.short ? 16 : 1024;
const SCATTERED_CLUSTERS = values.short ? 500 : 30_000;
const METADATA_SIZE = values.short ? '16G' : '1T';
const MiB = 1024 * 1024;

const dist = fileURLToPath(new URL('../../', import.meta.url));
const client = [process.execPath, join(dist, 'clients/qemu-img/main.js'), '--connect', 'none'];
const qemuImg = 'qemu-img';
const folder = mkdtempSync(join(tmpdir(), 'imgd-bench-'));
const at = (name: string) => join(folder, name);
const wanted = (name: string) => name.includes(values.only);

function qemu(...args: string[]): void {
  execFileSync(qemuImg, args, { stdio: 'ignore' });
}

/** Incompressible content: every byte must move. */
function randomFile(name: string, bytes: number): string {
  const path = at(name);
  if (existsSync(path)) return path;
  const fd = openSync(path, 'w');
  const block = Buffer.alloc(4 * MiB);
  for (let done = 0; done < bytes; done += block.byteLength) {
    randomFillSync(block);
    writeSync(fd, block, 0, Math.min(block.byteLength, bytes - done), done);
  }
  closeSync(fd);
  return path;
}

/** Content that compresses about three to one, as file systems' often does: random words of 24 bits among text. */
function compressibleFile(name: string, bytes: number): string {
  const path = at(name);
  if (existsSync(path)) return path;
  const fd = openSync(path, 'w');
  const block = Buffer.alloc(4 * MiB);
  let seed = 1;
  for (let done = 0; done < bytes; done += block.byteLength) {
    for (let i = 0; i < block.byteLength; i += 16) {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      block.write('the disk image ', i, 'latin1');
      block.writeUInt32LE(seed, i + (seed % 13));
    }
    writeSync(fd, block, 0, Math.min(block.byteLength, bytes - done), done);
  }
  closeSync(fd);
  return path;
}

/** A raw image with data in `count` clusters of 64 KiB, every second one, turned into a qcow2 whose clusters are scattered. */
function scattered(count: number): string {
  const path = at('scattered.qcow2');
  if (existsSync(path)) return path;
  qemu('create', '-f', 'qcow2', path, `${count * 2 * 64}K`);
  // Written in a fixed pseudo-random order, so that guest order is not host order.
  const commands: string[] = [];
  let index = 0;
  for (let i = 0; i < count; i++) {
    index = (index + 7919) % count;
    commands.push(`write -q -P ${(index % 255) + 1} ${index * 2 * 64}k 64k`);
  }
  execFileSync('qemu-io', ['-t', 'unsafe', path], {
    input: `${commands.join('\n')}\n`,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  return path;
}

function* cases(): Generator<() => Case> {
  const bytes = sizeMiB * MiB;
  const out = at('out');
  const reset = () => rmSync(out, { force: true });
  const convert = (name: string, goal: number, args: readonly string[]): Case => ({
    name,
    goal,
    reference: [qemuImg, 'convert', ...args, out],
    ours: [...client, 'convert', ...args, out],
    reset,
  });
  const random = () => randomFile('random.raw', bytes);
  const text = () => compressibleFile('text.raw', COMPRESSED_MIB * MiB);
  const from = (source: string, name: string, ...args: string[]) => {
    const path = at(name);
    if (!existsSync(path)) qemu('convert', ...args, source, path);
    return path;
  };
  yield () => convert('convert raw -> raw', 1.2, ['-f', 'raw', '-O', 'raw', random()]);
  yield () => convert('convert raw -> qcow2', 1.2, ['-f', 'raw', '-O', 'qcow2', random()]);
  yield () =>
    convert('convert qcow2 -> raw', 1.2, [
      '-f',
      'qcow2',
      '-O',
      'raw',
      from(random(), 'random.qcow2', '-O', 'qcow2'),
    ]);
  yield () =>
    convert('convert qcow2 -> qcow2', 1.2, [
      '-f',
      'qcow2',
      '-O',
      'qcow2',
      from(random(), 'random.qcow2', '-O', 'qcow2'),
    ]);
  yield () =>
    convert('convert 30,000 scattered clusters -> qcow2', 1.2, [
      '-f',
      'qcow2',
      '-O',
      'qcow2',
      scattered(SCATTERED_CLUSTERS),
    ]);
  yield () => convert('convert -c zlib write', 1.5, ['-f', 'raw', '-O', 'qcow2', '-c', text()]);
  yield () =>
    convert('convert -c zlib read', 1.5, [
      '-f',
      'qcow2',
      '-O',
      'raw',
      from(text(), 'zlib.qcow2', '-O', 'qcow2', '-c'),
    ]);
  yield () =>
    convert('convert -c zstd write', 1.0, [
      '-f',
      'raw',
      '-O',
      'qcow2',
      '-c',
      '-o',
      'compression_type=zstd',
      text(),
    ]);
  yield () =>
    convert('convert -c zstd read', 1.0, [
      '-f',
      'qcow2',
      '-O',
      'raw',
      from(text(), 'zstd.qcow2', '-O', 'qcow2', '-c', '-o', 'compression_type=zstd'),
    ]);
  yield () => {
    const twin = from(random(), 'twin.raw', '-f', 'raw', '-O', 'raw');
    const args = ['compare', '-f', 'raw', '-F', 'raw', random(), twin];
    return { name: 'compare raw, raw', goal: 1.2, reference: [qemuImg, ...args], ours: [...client, ...args] };
  };
  const big = () => {
    const path = at('big.qcow2');
    if (!existsSync(path)) qemu('create', '-f', 'qcow2', '-o', 'preallocation=metadata', path, METADATA_SIZE);
    return path;
  };
  yield () => {
    const args = ['check', '-f', 'qcow2', big()];
    return {
      name: 'check 1 TiB of metadata',
      goal: 1.2,
      reference: [qemuImg, ...args],
      ours: [...client, ...args],
    };
  };
  yield () => {
    const args = ['map', '-f', 'qcow2', big()];
    return {
      name: 'map 1 TiB of metadata',
      goal: 1.2,
      reference: [qemuImg, ...args],
      ours: [...client, ...args],
    };
  };
}

async function main(): Promise<void> {
  try {
    execFileSync(qemuImg, ['--version'], { stdio: 'ignore' });
  } catch {
    process.stdout.write('bench: SKIPPED, no reference qemu-img in PATH\n');
    return;
  }
  process.stdout.write(
    `median of ${pairs} paired runs; images of ${sizeMiB} MiB (compressed: ${COMPRESSED_MIB} MiB); Node.js ${process.version}\n`,
  );
  for (const make of cases()) {
    // The name is known without making the (large) input.
    const probe = make.toString();
    if (values.only !== '' && !probe.includes(values.only)) continue;
    const test = make();
    printRow(await compare(test, pairs));
    rmSync(at('out'), { force: true });
  }
  await daemonCases({ dist, folder, pairs, wanted });
}

try {
  await main();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
