/** The suite: format x option string or sample x size x cell, each a comparison of ours with the reference. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Bench, type Sample } from './bench.js';
import type { FormatCase } from './case.js';
import { type Cell, check, create, info, map, measure, probe, read } from './cells.js';
import type { Program } from './programs.js';
import { backing, compress, resize, write } from './writing.js';

export const CELLS = {
  probe,
  info,
  read,
  write,
  create,
  check,
  map,
  measure,
  resize,
  backing,
  compress,
} as const satisfies Record<string, Cell>;

export type CellName = keyof typeof CELLS;

export const CELL_NAMES = Object.keys(CELLS) as CellName[];

export interface Row {
  readonly format: FormatCase;
  readonly option: string | Sample;
}

/** `absent`: the reference refuses, and ours refuses the same way. */
export type Verdict = 'ok' | 'absent' | 'fail';

export interface CellResult {
  readonly cell: CellName;
  readonly verdict: Verdict;
  /** The first differences, each with what it was found by. */
  readonly found: readonly string[];
}

export function rowsOf(format: FormatCase): Row[] {
  return [...format.options, ...(format.samples ?? [])].map((option) => ({ format, option }));
}

export function nameOf({ option }: Row): string {
  return typeof option === 'string' ? option || '(default)' : `sample ${option.name}`;
}

/** Runs cells of a row with images of some sizes; what they leave is removed. `thorough`: see Setup, for the first size. */
export async function runRow(
  row: Row,
  ours: Program,
  cells: readonly CellName[] = CELL_NAMES,
  sizes: readonly number[] = row.format.sizes,
  thorough = true,
): Promise<CellResult[]> {
  const found = new Map<CellName, string[]>(cells.map((cell) => [cell, []]));
  const done = new Set<CellName>();
  // A sample has its own size.
  for (const [i, size] of (typeof row.option === 'string' ? sizes : [0]).entries()) {
    const folder = mkdtempSync(join(tmpdir(), 'imgd-conformance-'));
    try {
      const bench = new Bench({ ...row, size, folder, ours, thorough: thorough && i === 0 });
      for (const cell of cells) {
        // Chains take longest, and know nothing of the whole size.
        if (cell === 'backing' && i > 0) continue;
        if (row.format.refused?.[nameOf(row)]?.[cell] !== undefined) continue;
        bench.found = [];
        bench.more = row.format.more?.[cell] !== undefined;
        try {
          if (await CELLS[cell](bench)) done.add(cell);
        } catch (error) {
          bench.note(`the suite: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
        }
        const all = found.get(cell)!;
        for (const each of bench.found) all.push(each.replaceAll(folder, '@FOLDER@'));
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
  return cells.map((cell) => {
    const all = [...new Set(found.get(cell))];
    return { cell, found: all, verdict: all.length > 0 ? 'fail' : done.has(cell) ? 'ok' : 'absent' };
  });
}

/** What the case says that the reference does, and it does not for any option string; or the other way round. */
export function contradictions(format: FormatCase, results: readonly (readonly CellResult[])[]): string[] {
  return Object.entries(format.does).flatMap(([cell, says]) => {
    const all = results.flat().filter((each) => each.cell === cell);
    // A failed cell may be one that the reference has.
    if (all.length === 0 || all.some((each) => each.verdict === 'fail')) return [];
    const does = all.some((each) => each.verdict === 'ok');
    return does === says
      ? []
      : [`the case says ${cell}: ${says}, the reference ${does ? 'does' : 'does not'}`];
  });
}
