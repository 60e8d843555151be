/** Tells a retry of a request from another request under the same id. */
import { createHash } from 'node:crypto';

/** Parameters may hold secrets and be long: only their hash is kept. */
export function digestOf(operation: string, params: unknown, cwd: string): string {
  return createHash('sha256')
    .update(JSON.stringify([operation, cwd, canonical(params)]))
    .digest('base64');
}

/** The same value with the members of objects in one order. */
function canonical(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(canonical);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return { entries: entries.map(([key, inner]) => [key, canonical(inner)]) };
}

/** Members that say how a job is gone about or hold secrets: without them it is the same work. */
const ASIDE = new Set(['objects', 'resume', 'trace', 'count-data']);

/** A hash that may be written down, and that a job has in common with its resumption. */
export function lastingDigest(operation: string, params: unknown, cwd: string): string {
  const members = Object.entries(params as object).filter(([name, value]) => {
    // A dry run is other work.
    return name === 'dry-run' ? value === true : !ASIDE.has(name);
  });
  return digestOf(operation, Object.fromEntries(members), cwd);
}
