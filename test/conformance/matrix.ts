/**
 * `npm run matrix [-- FORMAT[:PART]...]`: the whole suite, or some formats or rows whose options contain PART, as a table. Exit
 * code 1 where a cell fails.
 */
import { availableParallelism } from 'node:os';
import { reference } from '../support/reference.js';
import type { FormatCase } from './case.js';
import {
  CELL_NAMES,
  type CellResult,
  contradictions,
  nameOf,
  type Row,
  rowsOf,
  runRow,
} from './conformance.js';
import { loadCases } from './formats/index.js';
import { ourHost } from './programs.js';

const SHOWN = { ok: 'ok', absent: '-', fail: 'FAIL' } as const;
const FIRST = 12;

if (reference.qemuImg === undefined || reference.qemuIo === undefined) {
  process.stderr.write('matrix: the reference qemu-img and qemu-io are not in PATH\n');
  process.exit(1);
}

const { cases, broken } = await loadCases();
const wanted = process.argv.slice(2).map((word) => word.split(/:(.*)/) as [string, string?]);
const unknown = wanted.map(([name]) => name).filter((name) => !cases.some((each) => each.format === name));
const rows = cases
  .flatMap((each) => rowsOf(each))
  .filter(
    (row) =>
      wanted.length === 0 ||
      wanted.some(([name, part = '']) => name === row.format.format && nameOf(row).includes(part)),
  );

const results = new Map<Row, readonly CellResult[]>();
const title = (row: Row) => `${row.format.format} ${nameOf(row)}`;
const width = Math.max(...rows.map((row) => title(row).length), 0);
const line = (first: string, rest: readonly string[]) =>
  `${first.padEnd(width)}  ${rest.map((each) => each.padEnd(8)).join(' ')}`.trimEnd();
console.log(line('', CELL_NAMES));

/** Interrupted, it tells of the rows that are done. */
let stopped = false;
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    stopped = true;
  });
}

const queue = rows.values();
let printed = 0;
async function worker(): Promise<void> {
  const ours = ourHost();
  for (const row of queue) {
    const cells = await runRow(row, ours);
    // The programs may have had the signal too.
    if (stopped) break;
    results.set(row, cells);
    for (; printed < rows.length; printed++) {
      const next = rows[printed]!;
      const known = results.get(next);
      if (known === undefined) break;
      console.log(
        line(
          title(next),
          known.map(({ verdict }) => SHOWN[verdict]),
        ),
      );
    }
  }
  ours.end();
}
await Promise.all(Array.from({ length: Math.min(availableParallelism(), 4) }, worker));

const done = rows.filter((row) => results.has(row));
const details = done.flatMap((row) =>
  results
    .get(row)!
    .filter(({ verdict }) => verdict === 'fail')
    .map(({ cell, found }) => {
      const rest = found.length > FIRST ? [`and ${found.length - FIRST} more`] : [];
      return [`\n${title(row)}: ${cell}`, ...found.slice(0, FIRST), ...rest].join('\n  ');
    }),
);
for (const each of details) console.log(each);

/** All rows of the format were run. */
const whole = (format: FormatCase) =>
  rowsOf(format).length === done.filter((row) => row.format === format).length;

const told = [
  ...cases.filter(whole).flatMap((each) =>
    contradictions(
      each,
      rows.filter((row) => row.format === each).map((row) => results.get(row)!),
    ).map((text) => `${each.format}: ${text}`),
  ),
  ...broken.map(({ file, reason }) => `formats/${file}: ${reason}`),
  ...unknown.map((name) => `no case for ${name}`),
];
if (told.length > 0) console.log(['', ...told].join('\n'));

const all = [...results.values()].flat();
const count = (verdict: CellResult['verdict']) => all.filter((each) => each.verdict === verdict).length;
console.log(`\n${count('ok')} ok, ${count('absent')} absent in both, ${count('fail')} failed`);
process.exitCode = count('fail') + told.length > 0 || stopped ? 1 : 0;
