import { deflateSync } from 'node:zlib';
import * as kind from '../../../src/engine/formats/dmg/layout.js';
import { buildDmg, type ChunkSpec, type ImageSpec } from '../../support/dmg-image.js';
import { stamp } from '../../support/stamped.js';
import type { FormatCase } from '../case.js';

const SECTOR = 512;

interface Piece {
  readonly chunk: ChunkSpec;
  readonly guest: Uint8Array;
}

function stamped(first: number, sectors: number): Buffer {
  return Buffer.concat(Array.from({ length: sectors }, (_, i) => stamp(first + i, 7)));
}

const zlib = (first: number, sectors: number): Piece => {
  const guest = stamped(first, sectors);
  return { chunk: { kind: kind.ZLIB, sectors, stored: deflateSync(guest) }, guest };
};

const plain = (first: number, sectors: number): Piece => {
  const guest = stamped(first, sectors);
  return { chunk: { kind: kind.RAW, sectors, stored: guest }, guest };
};

const zero = (sectors: number, of: number = kind.ZERO): Piece => ({
  chunk: { kind: of, sectors },
  guest: new Uint8Array(sectors * SECTOR),
});

function sample(name: string, pieces: readonly Piece[], more: Partial<ImageSpec> = {}) {
  return {
    name,
    make() {
      const chunks = pieces.map((piece) => piece.chunk);
      const sectors = chunks.reduce((sum, chunk) => sum + chunk.sectors, 0);
      const { bytes } = buildDmg({ sectors, partitions: [{ firstSector: 0, chunks }], ...more });
      return { file: bytes, guest: Buffer.concat(pieces.map((piece) => piece.guest)) };
    },
  };
}

export const dmg: FormatCase = {
  format: 'dmg',
  options: [],
  sizes: [],
  does: { write: false, check: false, measure: false, resize: false, backing: false, compress: false },
  // Chunks of other kinds (bzip2, LZFSE, ADC) the reference reads by modules that may be missing, or not at all.
  samples: [
    sample('zlib', [zlib(0, 512), zlib(512, 512), zlib(1024, 100)]),
    sample('mixed', [plain(0, 40), zero(300), zlib(340, 512), zero(7, kind.IGNORE), plain(859, 3)]),
    sample('resource-fork', [zlib(0, 64), zero(65), plain(129, 2)], { place: 'resource-fork' }),
    sample('lead', [plain(0, 9), zlib(9, 512)], { lead: 4096 }),
  ],
};
