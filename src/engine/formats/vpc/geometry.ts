/** Cylinders, heads and sectors: "Appendix: CHS Calculation" of the specification, and what sizes have a geometry. */
import { MAX_SECTORS, SECTOR } from './layout.js';

export interface Geometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly sectorsPerTrack: number;
}

/** What a geometry can say at most: 127.5 GiB. An image that has it is as large as its current size says. */
export const MAX_GEOMETRY_SECTORS = 65535 * 16 * 255;
const LARGEST: Geometry = { cylinders: 65535, heads: 16, sectorsPerTrack: 255 };
const LARGE = 65535 * 16 * 63;

/** The geometry of a disk of so many sectors; it may have a few sectors less. */
export function geometryOf(sectors: number): Geometry {
  const total = Math.min(sectors, MAX_GEOMETRY_SECTORS);
  let sectorsPerTrack: number;
  let heads = 16;
  const tracks = () => Math.floor(total / sectorsPerTrack);
  if (total >= LARGE) sectorsPerTrack = 255;
  else {
    sectorsPerTrack = 17;
    heads = Math.max(4, Math.floor((tracks() + 1023) / 1024));
    if (tracks() >= heads * 1024 || heads > 16) {
      sectorsPerTrack = 31;
      heads = 16;
    }
    if (tracks() >= heads * 1024) {
      sectorsPerTrack = 63;
      heads = 16;
    }
  }
  return { cylinders: Math.floor(tracks() / heads), heads, sectorsPerTrack };
}

export function sectorsOf({ cylinders, heads, sectorsPerTrack }: Geometry): number {
  return cylinders * heads * sectorsPerTrack;
}

/**
 * The smallest geometry with at least so many sectors, as the reference finds it: sizes are tried one sector at a time.
 * Beyond what geometries can say: the largest.
 */
export function geometryFor(sectors: number): Geometry {
  if (sectors === 0) return { cylinders: 0, heads: 0, sectorsPerTrack: 0 };
  if (sectors >= MAX_GEOMETRY_SECTORS) return LARGEST;
  for (let candidate = sectors; ; candidate++) {
    const geometry = geometryOf(candidate);
    if (sectorsOf(geometry) >= sectors) return geometry;
  }
}

/**
 * Sectors of a new image of `size` bytes and its geometry; undefined where it is too large. `exact`: not rounded up to a
 * geometry, and given the largest one, which tells readers to go by the current size.
 */
export function layOut(
  size: number,
  exact: boolean,
): { readonly sectors: number; readonly geometry: Geometry } | undefined {
  const wanted = Math.ceil(size / SECTOR);
  const geometry = exact ? LARGEST : geometryFor(wanted);
  const rounded = sectorsOf(geometry);
  const sectors = exact || rounded === MAX_GEOMETRY_SECTORS ? wanted : rounded;
  return sectors > MAX_SECTORS ? undefined : { sectors, geometry };
}
