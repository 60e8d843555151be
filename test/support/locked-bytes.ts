/** The bytes of a file that a process has locked, through any of its descriptors. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

export function lockedBytes(pid: number, path: string): string {
  const bytes = new Set<number>();
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    let lines = '';
    try {
      if (readlinkSync(`/proc/${pid}/fd/${fd}`) !== path) continue;
      lines = readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'latin1');
    } catch {
      // closed meanwhile
    }
    // The kernel tells neighbours as one range.
    for (const [, first, last] of lines.matchAll(/^lock:.* (\d+) (\d+)$/gm)) {
      for (let byte = Number(first); byte <= Number(last); byte++) bytes.add(byte);
    }
  }
  return [...bytes].sort().join(' ');
}
