/**
 * The one place that decides whether a name may be opened. Names that callers give and names found inside images
 * (backing files, data files, extents) all pass here.
 */
import { readlinkSync, realpathSync } from 'node:fs';
import { basename, dirname, isAbsolute, join, resolve, sep } from 'node:path';
import { ImageError } from '../error.js';

export interface OpenPolicy {
  /**
   * Folders (absolute, symlinks resolved) that files must be in. Undefined: any file, as qemu-img does; then names found
   * inside images are followed too.
   */
  readonly roots?: readonly string[];
}

/** Why a file is opened: by its caller's words, or because an image names it. */
export type OpenReason = 'caller' | 'backing' | 'child';

/** The absolute path of a name; relative ones belong to the caller's folder. */
export function absolutePath(filename: string, cwd: string): string {
  return isAbsolute(filename) ? filename : resolve(cwd, filename);
}

/**
 * The name that an image gives for another file, as seen from the image: absolute names and names with a protocol stay,
 * others are relative to the folder of `imageName`.
 */
export function relativeTo(imageName: string, filename: string): string {
  if (isAbsolute(filename)) return filename;
  const slash = imageName.lastIndexOf('/');
  return slash < 0 ? filename : imageName.slice(0, slash + 1) + filename;
}

/** As many symlinks in a row as Linux follows. */
const MAX_LINKS = 40;

/** The path with symlinks resolved; what does not exist yet is judged by the nearest folder above it that does. */
function resolved(path: string, links = 0): string {
  try {
    return realpathSync(path);
  } catch {
    // Never the name as it stands: `root/../x/y` begins with the root, and is outside of it.
    const folder = dirname(path);
    if (folder === path) return path;
    const at = join(resolved(folder, links), basename(path));
    let target: string;
    try {
      target = readlinkSync(at);
    } catch {
      return at;
    }
    // A symlink that leads to nothing: who creates a file by its name creates what it leads to.
    return links < MAX_LINKS ? resolved(resolve(dirname(at), target), links + 1) : at;
  }
}

function inside(real: string, roots: readonly string[]): boolean {
  return roots.some((root) => {
    const base = resolved(root);
    return real === base || real.startsWith(base.endsWith(sep) ? base : base + sep);
  });
}

function denied(filename: string, reason: OpenReason): ImageError {
  return new ImageError('denied', `Could not open '${filename}': outside the allowed folders`, {
    path: filename,
    check: reason === 'caller' ? 'image-root' : `image-root-${reason}`,
  });
}

/** Throws `denied`, naming the check, where the policy does not allow `path` (absolute). */
export function checkAllowed(path: string, filename: string, reason: OpenReason, policy: OpenPolicy): void {
  const { roots } = policy;
  if (roots !== undefined && !inside(resolved(path), roots)) throw denied(filename, reason);
}

/**
 * The same of a file that has been opened: between the look at its name and the opening somebody may have put a symlink in
 * its place. Undefined where there is nothing to check; where the system does not tell, the look has to do.
 */
export function confine(
  filename: string,
  reason: OpenReason,
  policy: OpenPolicy,
): ((fd: number) => void) | undefined {
  const { roots } = policy;
  if (roots === undefined) return undefined;
  return (fd) => {
    let real: string;
    try {
      real = readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return;
    }
    if (!inside(real, roots)) throw denied(filename, reason);
  };
}
