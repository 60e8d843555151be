/**
 * Runs mutants by number. Not a coverage-guided library: the prebuilt part of jazzer.js 4.0 needs glibc 2.38 (Debian 12 has
 * 2.36) and brings a hundred packages, jsfuzz is unmaintained; and both take an input as a run of bytes, of which hardly
 * any gets past a magic number. Mutants are made from valid images with knowledge of their fields instead, and are the
 * same on every machine:
 *
 *   npx vitest run test/fuzz                        a few hundred mutants a format
 *   IMGD_FUZZ_SECONDS=300 npx vitest run test/fuzz  five minutes a format
 *   IMGD_FUZZ_SEED=1234 npx vitest run test/fuzz/dmg.test.ts   that mutant only
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ImageError } from '../../src/engine/error.js';
import type { FormatDriver } from '../../src/engine/node/driver.js';
import { exercise } from './exercise.js';
import { Guards } from './guards.js';
import { type Mutant, mutate, unchanged } from './mutate.js';
import { Random } from './random.js';
import type { Seed } from './seed.js';

/**
 * Processor time that one mutant may take, all threads together: it is opened some eight times, read, checked, repaired
 * three times and written to. Most take 10 ms; the worst are tables of 65,536 snapshots, the most that may be, whose repair
 * takes the reference a process of 5 s, too.
 */
const BUDGET_MS = 5000;
const MAX_FAILURES = 10;

const seconds = Number(process.env.IMGD_FUZZ_SECONDS ?? 0);
const only = process.env.IMGD_FUZZ_SEED;
/** Where the numbers begin: other runs, other mutants. */
const start = Number(process.env.IMGD_FUZZ_START ?? 0);

/** Time that a test of the suite may take, in ms. */
// A test runs two parsers at most.
export const fuzzTimeout = (seconds > 0 ? 2 * seconds * 1000 : 0) + 180_000;

const folder = join(tmpdir(), 'imgd-fuzz');

/** The numbers of the mutants of this run; `short` of them where no time is given. */
export function* numbers(short: number): Generator<number> {
  if (only !== undefined) {
    yield Number(only);
    return;
  }
  const end = Date.now() + seconds * 1000;
  for (let number = start; seconds > 0 ? Date.now() < end : number < start + short; number++) yield number;
}

export interface FuzzResult {
  readonly runs: number;
  readonly opened: number;
  readonly failures: readonly string[];
  readonly slowest: string;
  readonly largest: string;
}

function describe(error: unknown): string {
  const kind = error instanceof ImageError ? `ImageError ${error.kind}: ` : '';
  return `${kind}${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
}

function save(format: string, number: string, mutant: Mutant): string {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, `${format}-${number}`);
  writeFileSync(path, mutant.image);
  for (const [name, bytes] of mutant.others) {
    if (bytes !== mutant.image) writeFileSync(`${path}-${name.replace(/[^A-Za-z0-9.-]/g, '_')}`, bytes);
  }
  return path;
}

/** First the seeds as they are, which must open, then `short` mutants or as many as there is time for. */
export async function fuzz(
  driver: FormatDriver,
  seeds: readonly Seed[],
  short: number,
  budgetMs = BUDGET_MS,
): Promise<FuzzResult> {
  // What is loaded late (native libraries, worker code) is loaded before files are watched.
  for (const seed of seeds) {
    if (!(await exercise(driver, unchanged(seed), new Random(0))))
      throw new Error(`seed ${seed.name} does not open`);
  }
  const guards = new Guards(folder);
  const failures: string[] = [];
  let runs = 0;
  let opened = 0;
  let slowest = { ms: 0, label: '' };
  let largest = { bytes: 0, label: '' };
  try {
    for (const number of numbers(short)) {
      const random = new Random(number);
      const mutant = mutate(random.pick(seeds), random);
      const label = `${driver.name} mutant ${number} (${mutant.seed}: ${mutant.changes.join('; ')})`;
      const problems: string[] = [];
      const before = process.cpuUsage();
      try {
        const violations = await guards.watch(label, mutant.image, async () => {
          if (await exercise(driver, mutant, random)) opened++;
        });
        if (violations.files.length > 0)
          problems.push(`touched files: ${violations.files.slice(0, 5).join(', ')}`);
        problems.push(...violations.unhandled.map((reason) => `unhandled rejection: ${describe(reason)}`));
        if (guards.tooLarge(violations)) problems.push(`took ${violations.largestAllocation} bytes at once`);
        if (violations.largestAllocation > largest.bytes)
          largest = { bytes: violations.largestAllocation, label };
      } catch (error) {
        problems.push(describe(error));
      }
      const ms = processorMs(before);
      if (ms > slowest.ms) slowest = { ms, label };
      if (ms > budgetMs) problems.push(`took ${Math.round(ms)} ms of processor time`);
      runs++;
      if (problems.length === 0) continue;
      failures.push(
        `${label}\n  saved as ${save(driver.name, String(number), mutant)}\n  ${problems.join('\n  ')}`,
      );
      if (failures.length >= MAX_FAILURES) break;
    }
  } finally {
    await guards.stop();
  }
  return report(driver.name, runs, opened, failures, slowest, largest);
}

/** Of this process since then: other programs on the machine do not count. */
function processorMs(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

/** For parsers of text: they may throw ImageErrors, must be quick, and open nothing. */
export async function fuzzText(
  name: string,
  seeds: readonly string[],
  short: number,
  change: (random: Random, text: string) => string,
  parse: (text: string) => unknown,
): Promise<FuzzResult> {
  const guards = new Guards(folder);
  const failures: string[] = [];
  let runs = 0;
  let opened = 0;
  let slowest = { ms: 0, label: '' };
  let largest = { bytes: 0, label: '' };
  try {
    for (const number of numbers(short)) {
      const random = new Random(number);
      const text = change(random, random.pick(seeds));
      const label = `${name} ${number}: ${JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}...` : text)}`;
      const problems: string[] = [];
      const before = process.cpuUsage();
      try {
        const violations = await guards.watch(label, Buffer.from(text), async () => {
          try {
            parse(text);
            opened++;
          } catch (error) {
            if (!(error instanceof ImageError) || error.kind === 'internal') throw error;
          }
        });
        if (violations.files.length > 0)
          problems.push(`touched files: ${violations.files.slice(0, 5).join(', ')}`);
        if (violations.largestAllocation > largest.bytes)
          largest = { bytes: violations.largestAllocation, label };
      } catch (error) {
        problems.push(describe(error));
      }
      const ms = processorMs(before);
      if (ms > slowest.ms) slowest = { ms, label };
      if (ms > BUDGET_MS) problems.push(`took ${Math.round(ms)} ms of processor time`);
      runs++;
      if (problems.length > 0) failures.push(`${label}\n  ${problems.join('\n  ')}`);
      if (failures.length >= MAX_FAILURES) break;
    }
  } finally {
    await guards.stop();
  }
  return report(name, runs, opened, failures, slowest, largest);
}

function report(
  name: string,
  runs: number,
  opened: number,
  failures: readonly string[],
  slowest: { readonly ms: number; readonly label: string },
  largest: { readonly bytes: number; readonly label: string },
): FuzzResult {
  const slow = `${Math.round(slowest.ms)} ms: ${slowest.label.slice(0, 200)}`;
  const large = `${(largest.bytes / 2 ** 20).toFixed(1)} MiB: ${largest.label.slice(0, 200)}`;
  if (seconds > 0 || only !== undefined) {
    process.stderr.write(
      `\nFUZZ ${name}: ${runs} mutants, ${opened} accepted, ${failures.length} failed\n  slowest ${slow}\n  largest ${large}\n`,
    );
  }
  return { runs, opened, failures, slowest: slow, largest: large };
}
