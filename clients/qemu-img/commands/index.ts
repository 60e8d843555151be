/** The subcommands by name. Each one's code is loaded when it is asked for. */
import type { Command } from '../declare.js';

type Loader = () => Promise<{ readonly default: unknown }>;

const loaders: Readonly<Record<string, Loader>> = {
  check: () => import('./check.js'),
  compare: () => import('./compare.js'),
  convert: () => import('./convert.js'),
  create: () => import('./create.js'),
  info: () => import('./info.js'),
  map: () => import('./map.js'),
};

/** Subcommands of the reference that are still to come. */
const LATER = ['amend', 'bench', 'bitmap', 'commit', 'dd', 'measure', 'rebase', 'resize', 'snapshot'];

export const names = Object.keys(loaders);

/** The subcommand's declaration; `later` for one that is not there yet, undefined for a word that is none. */
export async function load(name: string): Promise<Command | 'later' | undefined> {
  if (!Object.hasOwn(loaders, name)) return LATER.includes(name) ? 'later' : undefined;
  return (await loaders[name]!()).default as Command;
}
