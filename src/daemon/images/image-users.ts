/** Who has image files open: from the marks on this daemon's descriptors, and from what /proc shows of others. */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { readdir, readFile, readlink, stat } from 'node:fs/promises';
import { UNSHARED_BASE, USED_BASE } from '../../engine/storage/locks.js';
import { PERMISSIONS } from '../../engine/storage/permissions.js';
import type { ImageUser, ImageUsers } from '../../protocol/commands/image-users.js';
import type { UserOfNode } from './nodes.js';
import type { Owners } from './owners.js';
import { permissionNames } from './users.js';

/** Other processes are looked at no longer than this. */
const SCAN_MS = 2000;

interface FileKey {
  readonly device: number;
  readonly inode: number;
}

interface Locked {
  readonly uses: number;
  readonly unshared: number;
}

/** `lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1234 101 101`: the inode, first and last byte. */
const LOCK_LINE =
  /^lock:\t\d+: (?:OFDLCK|POSIX)\s+\w+\s+\w+\s+-?\d+ [0-9a-f]+:[0-9a-f]+:(\d+) (\d+) (\d+|EOF)$/gm;

/** The permission bytes that are locked through a descriptor, by its fdinfo. */
function lockedBytes(fdinfo: string, inode: number): Locked {
  let uses = 0;
  let unshared = 0;
  for (const [, ino, first, last] of fdinfo.matchAll(LOCK_LINE)) {
    if (Number(ino) !== inode) continue;
    const covers = (at: number): boolean => Number(first) <= at && (last === 'EOF' || at <= Number(last));
    for (let n = 0; n < PERMISSIONS.length; n++) {
      if (covers(USED_BASE + n)) uses |= 1 << n;
      if (covers(UNSHARED_BASE + n)) unshared |= 1 << n;
    }
  }
  return { uses, unshared };
}

const text = (path: string): Promise<string> => readFile(path, 'latin1').catch(() => '');
const list = (path: string): Promise<string[]> => readdir(path).catch(() => []);

/** Inodes on which any lock is held, by /proc/locks. */
async function lockedInodes(): Promise<Set<number>> {
  const inodes = new Set<number>();
  for (const [, inode] of (await text('/proc/locks')).matchAll(/ [0-9a-f]+:[0-9a-f]+:(\d+) /g)) {
    inodes.add(Number(inode));
  }
  return inodes;
}

interface Found extends FileKey {
  filename: string;
  readonly users: ImageUser[];
}

/**
 * @param wanted one file, or undefined for all that this daemon has open.
 * @param nodes the held nodes' users, by the number that marks their descriptors.
 */
export async function imageUsers(
  owners: Owners,
  nodes: readonly (UserOfNode & { readonly owner: number })[],
  wanted: (FileKey & { readonly filename: string }) | undefined,
): Promise<ImageUsers> {
  const files = new Map<string, Found>();
  const keyOf = ({ device, inode }: FileKey): string => `${device}:${inode}`;
  if (wanted !== undefined) files.set(keyOf(wanted), { ...wanted, users: [] });

  for (const [fd, number, owner] of [...owners.descriptors()]) {
    const path = `/proc/self/fd/${fd}`;
    const found = await stat(path).catch(() => undefined);
    if (found === undefined) continue;
    const key = { device: found.dev, inode: found.ino };
    let file = files.get(keyOf(key));
    if (file === undefined) {
      if (wanted !== undefined) continue;
      file = { ...key, filename: await readlink(path).catch(() => ''), users: [] };
      files.set(keyOf(key), file);
    }
    const locked = lockedBytes(await text(`/proc/self/fdinfo/${fd}`), found.ino);
    const permissions = permissionsOf(locked);
    if (owner.kind === 'job') {
      file.users.push({ kind: 'job', job: owner.job, operation: owner.operation, ...permissions });
    } else {
      const { jobs = [], parents = [] } = nodes.find((each) => each.owner === number) ?? {};
      file.users.push({ kind: 'node', node: owner.node, jobs, parents, ...permissions });
    }
  }
  await addProcesses([...files.values()]);
  return [...files.values()].sort((a, b) => (a.filename < b.filename ? -1 : 1));
}

function permissionsOf({ uses, unshared }: Locked): Pick<ImageUser, 'uses' | 'unshared'> {
  return { uses: permissionNames(uses), unshared: permissionNames(unshared) };
}

async function addProcesses(files: readonly Found[]): Promise<void> {
  const locked = await lockedInodes();
  const sought = files.filter(({ inode }) => locked.has(inode));
  if (sought.length === 0) return;
  const deadline = Date.now() + SCAN_MS;
  for (const pid of await list('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    if (Date.now() > deadline) return;
    lookAt(pid, sought);
    // Others are served between one process and the next.
    await new Promise((resolve) => setImmediate(resolve));
  }
}

function lookAt(pid: string, sought: readonly Found[]): void {
  for (const fd of listNow(`/proc/${pid}/fdinfo`)) {
    const fdinfo = textNow(`/proc/${pid}/fdinfo/${fd}`);
    if (!fdinfo.includes('lock:')) continue;
    for (const file of sought) {
      const bytes = lockedBytes(fdinfo, file.inode);
      if (bytes.uses === 0 && bytes.unshared === 0) continue;
      // Inode numbers repeat from one filesystem to the next.
      const same = statSync(`/proc/${pid}/fd/${fd}`, { throwIfNoEntry: false });
      if (same?.dev !== file.device || same.ino !== file.inode) continue;
      const command = textNow(`/proc/${pid}/comm`).trim();
      file.users.push({ kind: 'process', pid: Number(pid), command, ...permissionsOf(bytes) });
    }
  }
}

function listNow(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

function textNow(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}
