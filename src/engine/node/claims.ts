/** Which formats a file could be taken for: one that is two things at once is read as one here and as the other elsewhere. */
import { driverNames, loadDriver } from '../formats/index.js';
import type { Storage } from '../storage/storage.js';
import type { FormatDriver } from './driver.js';
import { PROBE_SIZE } from './image.js';

/** What is no image format here, or is recognised by what probing does not look at. Offset from the start, or from the end. */
const SIGNATURES: readonly { readonly name: string; readonly at: number; readonly bytes: string }[] = [
  { name: 'luks', at: 0, bytes: 'LUKS\xba\xbe' },
  { name: 'iso', at: 0x8001, bytes: 'CD001' },
  // A fixed VHD has nothing at its start.
  { name: 'vpc', at: -512, bytes: 'conectix' },
  { name: 'dmg', at: -512, bytes: 'koly' },
];

/** Less is a guess by the file's name. */
const CLAIM = 50;

export interface Claims {
  /** As probing has it: raw where nothing else claims the file. */
  readonly driver: FormatDriver;
  /** Nothing claims it. */
  readonly unclaimed: boolean;
  /** All that do, and what else it has the signature of. */
  readonly names: readonly string[];
}

export async function claimsOf(file: Storage): Promise<Claims> {
  const head = Buffer.alloc(PROBE_SIZE);
  await file.read(0, head);
  const names: string[] = [];
  let best: FormatDriver | undefined;
  let bestScore = 0;
  for (const name of driverNames) {
    const driver = (await loadDriver(name))!;
    // The name is not asked for: whoever made the file may have chosen it.
    const score = driver.probe(head, '', file.size);
    if (score >= CLAIM) names.push(name);
    if (score > bestScore) {
      best = driver;
      bestScore = score;
    }
  }
  for (const { name, at, bytes } of SIGNATURES) {
    const from = at < 0 ? file.size + at : at;
    if (from < 0 || names.includes(name)) continue;
    const found = Buffer.alloc(bytes.length);
    await file.read(from, found);
    if (found.toString('latin1') === bytes) names.push(name);
  }
  return { driver: best!, unclaimed: bestScore < CLAIM, names };
}
