/** Which format a file is: the driver with the highest score wins, raw if no other claims it. */
import { hostError } from '../error.js';
import { driverNames, loadDriver } from '../formats/index.js';
import type { Storage } from '../storage/storage.js';
import type { FormatDriver } from './driver.js';
import { PROBE_SIZE } from './image.js';

const CERTAIN = 100;

async function winner(head: Uint8Array, filename: string, size: number): Promise<FormatDriver> {
  let best: FormatDriver | undefined;
  let bestScore = 0;
  for (const name of driverNames) {
    const driver = (await loadDriver(name))!;
    const score = driver.probe(head, filename, size);
    if (score > bestScore) {
      best = driver;
      bestScore = score;
      if (score >= CERTAIN) break;
    }
  }
  // raw takes anything.
  return best!;
}

/** Reads the start of the storage and asks the drivers. */
export async function probe(file: Storage): Promise<FormatDriver> {
  const head = Buffer.alloc(PROBE_SIZE);
  try {
    await file.read(0, head);
  } catch (error) {
    throw hostError('Could not read image for determining its format', error);
  }
  return winner(head, file.filename, file.size);
}

/** For a probed raw image: whether a new start would still be taken for raw (drivers must be loaded: `probe` was called). */
export async function rawGuard(filename: string, size: number): Promise<(head: Uint8Array) => boolean> {
  const drivers = await Promise.all(driverNames.map((name) => loadDriver(name)));
  return (head) => {
    let best = '';
    let bestScore = 0;
    for (const driver of drivers) {
      const score = driver!.probe(head, filename, size);
      if (score > bestScore) {
        best = driver!.name;
        bestScore = score;
      }
    }
    return best === 'raw';
  };
}
