/** Who may call what: the one table of the roles that commands need. */
import type { CommandName } from './commands/index.js';

/** From the least to the most: each may do what those before it may. */
export const roles = ['watch', 'operate', 'admin'] as const;
export type Role = (typeof roles)[number];

/** The method that answers with the OpenRPC document. */
export const DISCOVER = 'rpc.discover';

/**
 * `watch` looks at jobs, events and the daemon, and touches neither images nor jobs (an outcome that `job-wait` tells is
 * forgotten after). `operate` works on images. `admin` ends the daemon.
 */
const needed: Readonly<Record<CommandName | typeof DISCOVER, Role>> = {
  'image-create': 'operate',
  'image-info': 'operate',
  'image-inspect': 'operate',
  'image-convert': 'operate',
  'image-check': 'operate',
  'image-map': 'operate',
  'image-compare': 'operate',
  'image-commit': 'operate',
  'image-rebase': 'operate',
  'image-measure': 'operate',
  'image-dd': 'operate',
  'image-bench': 'operate',
  'image-amend': 'operate',
  'amend-options': 'watch',
  'image-bitmap': 'operate',
  'image-resize': 'operate',
  'image-snapshot': 'operate',
  'format-options': 'watch',
  'blockdev-add': 'operate',
  'blockdev-del': 'operate',
  'blockdev-reopen': 'operate',
  'query-named-block-nodes': 'watch',
  'query-image-users': 'operate',
  'query-jobs': 'watch',
  'job-pause': 'operate',
  'job-resume': 'operate',
  'job-cancel': 'operate',
  'job-set-speed': 'operate',
  'job-finalize': 'operate',
  'job-dismiss': 'operate',
  'job-wait': 'operate',
  'events-subscribe': 'watch',
  'events-unsubscribe': 'watch',
  ping: 'watch',
  'query-version': 'watch',
  'query-status': 'watch',
  'query-trace-events': 'watch',
  shutdown: 'admin',
  [DISCOVER]: 'watch',
};

/** The role that a method needs; what the table does not name, nobody but an admin may call. */
export function roleNeeded(method: string): Role {
  return Object.hasOwn(needed, method) ? needed[method as CommandName] : 'admin';
}

/** Whether a role covers another; one that is not known covers none. */
export function covers(role: Role | undefined, wanted: Role): boolean {
  return role !== undefined && roles.indexOf(role) >= roles.indexOf(wanted);
}
