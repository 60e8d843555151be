/** The one list of filters. A filter's code is loaded when it is first needed. */
import type { FilterDriver } from './filter.js';

const simple = () => import('./simple.js');

const FILTERS: Readonly<Record<string, () => Promise<FilterDriver>>> = {
  blkdebug: async () => (await import('./blkdebug.js')).blkdebug,
  blkverify: async () => (await import('./blkverify.js')).blkverify,
  compress: async () => (await import('./compress.js')).compress,
  'copy-on-read': async () => (await simple()).copyOnRead,
  preallocate: async () => (await simple()).preallocate,
  quorum: async () => (await import('./quorum.js')).quorum,
  throttle: async () => (await import('./throttle.js')).throttle,
};

export const filterNames: readonly string[] = Object.keys(FILTERS);

export function isFilter(name: string): boolean {
  return Object.hasOwn(FILTERS, name);
}

export function loadFilter(name: string): Promise<FilterDriver> {
  return FILTERS[name]!();
}
