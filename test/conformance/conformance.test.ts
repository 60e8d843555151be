/**
 * Every format and option string, a small set of cells, one size. `npm run matrix` does all of them. Here ours runs in this
 * process, the reference in its own.
 */
import { expect, it } from 'vitest';
import { describeInterop } from '../support/reference.js';
import { type CellName, nameOf, rowsOf, runRow } from './conformance.js';
import { loadCases } from './formats/index.js';
import { runHere } from './in-process.js';

const { cases, broken } = await loadCases();

const SMALL: readonly CellName[] = ['probe', 'info', 'read', 'write', 'map'];
/** For what the format makes when it is not told otherwise. */
const DEFAULT: readonly CellName[] = [...SMALL, 'create', 'check', 'measure', 'compress'];

/** Where the machine is busy: hundreds of processes are started. */
const TIMEOUT = 180_000;

it('every case loads', () => expect(broken).toEqual([]));

for (const format of cases) {
  describeInterop(`conformance: ${format.format}`, () => {
    for (const [i, row] of rowsOf(format).entries()) {
      it(
        nameOf(row),
        async () => {
          const results = await runRow(
            row,
            runHere,
            i === 0 ? DEFAULT : SMALL,
            format.sizes.slice(0, 1),
            i === 0,
          );
          const failed = results.filter(({ verdict }) => verdict === 'fail');
          expect(failed.map(({ cell, found }) => `${cell}: ${found.join('\n')}`).join('\n\n')).toBe('');
        },
        TIMEOUT,
      );
    }
  });
}
