/**
 * The one place that decides whether a name may be opened. Names that callers give and names found inside images
 * (backing files, data files, extents) all pass here.
 */
import { realpathSync } from 'node:fs';
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

/** The path with symlinks resolved; what does not exist yet is judged by the nearest folder above it that does. */
function resolved(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    // Never the name as it stands: `root/../x/y` begins with the root, and is outside of it.
    const folder = dirname(path);
    return folder === path ? path : join(resolved(folder), basename(path));
  }
}

/** Throws `denied`, naming the check, where the policy does not allow `path` (absolute). */
export function checkAllowed(path: string, filename: string, reason: OpenReason, policy: OpenPolicy): void {
  const { roots } = policy;
  if (roots === undefined) return;
  const real = resolved(path);
  const inside = roots.some((root) => {
    const base = resolved(root);
    return real === base || real.startsWith(base.endsWith(sep) ? base : base + sep);
  });
  if (!inside) {
    throw new ImageError('denied', `Could not open '${filename}': outside the allowed folders`, {
      path: filename,
      check: reason === 'caller' ? 'image-root' : `image-root-${reason}`,
    });
  }
}
