/** The one place that decides whether a name may be opened. */

export interface OpenPolicy {
  /**
   * Folders (absolute, symlinks resolved) that files must be in. Undefined: any file, as qemu-img does; then names found
   * inside images are followed too.
   */
  readonly roots?: readonly string[];
}
