/**
 * What the conformance suite knows of a format: one value of this a format, in formats/<format>.ts. The suite itself
 * (conformance.ts) does the same things with each format and compares with the reference; a format adds no test code here.
 */
export interface FormatCase {
  /** As in `-f` and `-O`. */
  readonly format: string;
  /**
   * Option strings for `-o`, each a column of the matrix; '' is the default. Empty for formats that cannot be created: they
   * are read from `samples`.
   */
  readonly options: readonly string[];
  /** Guest sizes, in bytes, for each option string: one odd, one that fills several allocation units. */
  readonly sizes: readonly number[];
  /** What the reference does with this format, which ours must do as well. */
  readonly does: {
    /** Guest data can be written into an existing image. */
    readonly write: boolean;
    readonly check: boolean;
    readonly measure: boolean;
    readonly resize: boolean;
    /** Images can have a backing file. */
    readonly backing: boolean;
    /** `convert -c`. */
    readonly compress: boolean;
  };
  /** Option strings with which the reference refuses some of it (`resize` of fixed images, ...): `option: [cell, ...]`. */
  readonly except?: Readonly<Record<string, readonly string[]>>;
  /** Images of this format that cannot be made by `create`: returns the file's bytes and the guest's. */
  readonly samples?: readonly {
    readonly name: string;
    make(): { readonly file: Uint8Array; readonly guest: Uint8Array };
  }[];
}
