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
