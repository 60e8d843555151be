/**
 * Whole-process timings in pairs, reference and ours in turn, so that a machine whose speed drifts does not decide. The
 * figure of a case is the median of the pairs' ratios. Nothing here is a verdict: it prints a table.
 */
import { execFileSync, type SpawnOptions, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';

export interface Timed {
  readonly seconds: number;
  /** Peak resident memory of the process in MiB, as last seen while it ran; 0 where it was too short to be seen. */
  readonly peakMiB: number;
  readonly status: number | null;
}

function peakOf(pid: number): number {
  try {
    const text = readFileSync(`/proc/${pid}/status`, 'utf8');
    return Number(/VmHWM:\s*(\d+) kB/.exec(text)?.[1] ?? 0) / 1024;
  } catch {
    return 0;
  }
}

/** Runs a command to its end, output thrown away. */
export function timed(argv: readonly string[], options: SpawnOptions = {}, memory = false): Promise<Timed> {
  return new Promise((resolve, reject) => {
    const start = process.hrtime.bigint();
    const child = spawn(argv[0]!, argv.slice(1), { stdio: 'ignore', ...options });
    let peak = 0;
    const watch = memory ? setInterval(() => (peak = Math.max(peak, peakOf(child.pid!))), 10) : undefined;
    child.on('error', reject);
    child.on('exit', (status) => {
      clearInterval(watch);
      resolve({ seconds: Number(process.hrtime.bigint() - start) / 1e9, peakMiB: peak, status });
    });
  });
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]!;
}

export interface Case {
  readonly name: string;
  /** The ratio (reference / ours) that is wanted. */
  readonly goal: number;
  readonly reference: readonly string[];
  readonly ours: readonly string[];
  /** Run before each single run, untimed: removes the output. */
  reset?(): void;
  readonly env?: NodeJS.ProcessEnv;
}

export interface Row {
  readonly name: string;
  readonly goal: number;
  readonly ratio: number;
  readonly low: number;
  readonly high: number;
  readonly reference: number;
  readonly ours: number;
}

/** `pairs` counted pairs after one warm-up pair. */
export async function compare(test: Case, pairs: number): Promise<Row> {
  const ratios: number[] = [];
  const reference: number[] = [];
  const ours: number[] = [];
  for (let i = -1; i < pairs; i++) {
    const seconds = [0, 0];
    // In turn, so that what one leaves behind does not always meet the same other.
    for (const which of i % 2 === 0 ? [0, 1] : [1, 0]) {
      const argv = which === 0 ? test.reference : test.ours;
      // What was written before would be written back during the run.
      execFileSync('sync');
      test.reset?.();
      const run = await timed(argv, test.env === undefined ? {} : { env: { ...process.env, ...test.env } });
      if (run.status !== 0) throw new Error(`${test.name}: ${argv.join(' ')} ended with ${run.status}`);
      seconds[which] = run.seconds;
    }
    if (i < 0) continue;
    reference.push(seconds[0]!);
    ours.push(seconds[1]!);
    ratios.push(seconds[0]! / seconds[1]!);
  }
  return {
    name: test.name,
    goal: test.goal,
    ratio: median(ratios),
    low: Math.min(...ratios),
    high: Math.max(...ratios),
    reference: median(reference),
    ours: median(ours),
  };
}

export function printRow(row: Row): void {
  const mark = row.ratio >= row.goal ? 'ok  ' : 'MISS';
  const ms = (s: number) => `${(s * 1000).toFixed(1)} ms`.padStart(11);
  process.stdout.write(
    `${mark} ${row.name.padEnd(44)} ${row.ratio.toFixed(2).padStart(6)}x (goal ${row.goal.toFixed(1)}; ` +
      `${row.low.toFixed(2)}-${row.high.toFixed(2)})  reference ${ms(row.reference)}  ours ${ms(row.ours)}\n`,
  );
}
