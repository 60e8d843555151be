/** The subcommands by name. Each one's code is loaded when it is asked for. */
import type { Command } from '../declare.js';

type Loader = () => Promise<{ readonly default: unknown }>;

const loaders: Readonly<Record<string, Loader>> = {
  amend: () => import('./amend.js'),
  bench: () => import('./bench.js'),
  bitmap: () => import('./bitmap.js'),
  check: () => import('./check.js'),
  commit: () => import('./commit.js'),
  compare: () => import('./compare.js'),
  convert: () => import('./convert.js'),
  create: () => import('./create.js'),
  dd: () => import('./dd.js'),
  info: () => import('./info.js'),
  map: () => import('./map.js'),
  measure: () => import('./measure.js'),
  rebase: () => import('./rebase.js'),
  resize: () => import('./resize.js'),
  snapshot: () => import('./snapshot.js'),
};

export const names = Object.keys(loaders);

/** The subcommand's declaration; undefined for a word that is none. */
export async function load(name: string): Promise<Command | undefined> {
  if (!Object.hasOwn(loaders, name)) return undefined;
  return (await loaders[name]!()).default as Command;
}
