/** Reads many tables of one cluster each: near ones as one piece, several pieces in flight, in order. */
import { breathe, type CheckState } from './check-image.js';
import { loadTable, tableBytes } from './layout.js';

/** Tables that are near each other are read as one, up to this many bytes; in between so many may be read in vain. */
const PIECE_BYTES = 1 << 20;
const GAP_BYTES = 32 << 10;
const PIECES_IN_FLIGHT = 4;

/** A table by its index in the one above it, and its place in the file. */
export interface PlacedTable {
  readonly index: number;
  readonly at: number;
}

interface Plan {
  at: number;
  length: number;
  readonly tables: PlacedTable[];
}

export interface Piece {
  readonly at: number;
  readonly tables: readonly PlacedTable[];
  /** All from `at` on in host order. Valid until the next piece is asked for. */
  readonly words: Uint32Array;
}

/**
 * The tables in the order given. What lies past the end of the file reads as zeros. With `single` they are read one at a
 * time, so that a repair of one is seen where it is met again.
 */
export async function* readPieces(
  state: CheckState,
  tables: readonly PlacedTable[],
  single: boolean,
): AsyncGenerator<Piece> {
  const { file, context, header } = state;
  const plans = planPieces(tables, header.geometry.clusterSize, single);
  const depth = single ? 1 : PIECES_IN_FLIGHT;
  const free: Uint32Array[] = [];
  const ahead: Promise<Piece>[] = [];
  const load = async ({ at, length, tables }: Plan): Promise<Piece> => {
    let buffer = free.pop();
    if (buffer === undefined || buffer.length < length / 4) buffer = new Uint32Array(length / 4);
    const words = buffer.subarray(0, length / 4);
    if (at < file.size) await file.read(at, tableBytes(words));
    else words.fill(0);
    return { at, tables, words: loadTable(words) };
  };
  for (let next = 0; next < plans.length || ahead.length > 0; ) {
    while (next < plans.length && ahead.length < depth) {
      const reading = load(plans[next]!);
      // the error of a read ahead is met when its turn comes
      reading.catch(() => {});
      ahead.push(reading);
      next += 1;
    }
    const piece = await ahead.shift()!;
    yield piece;
    free.push(new Uint32Array(piece.words.buffer));
    await breathe(context.signal);
  }
}

/** Joins tables that are read together; their order stays. */
function planPieces(tables: readonly PlacedTable[], tableLength: number, single: boolean): Plan[] {
  const pieces: Plan[] = [];
  let last: Plan | undefined;
  for (const table of tables) {
    const gap = last === undefined ? -1 : table.at - (last.at + last.length);
    if (
      last !== undefined &&
      !single &&
      gap >= 0 &&
      gap <= GAP_BYTES &&
      table.at + tableLength - last.at <= PIECE_BYTES
    ) {
      last.length = table.at + tableLength - last.at;
      last.tables.push(table);
    } else {
      last = { at: table.at, length: tableLength, tables: [table] };
      pieces.push(last);
    }
  }
  return pieces;
}
