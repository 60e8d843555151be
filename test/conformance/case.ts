/**
 * What the conformance suite knows of a format: one value of this a format, in formats/<format>.ts. The suite itself
 * (conformance.ts) does the same things with each format and compares with the reference; a format adds no test code here.
 */
export interface FormatCase {
  /** As in `-f` and `-O`. */
  readonly format: string;
  /**
   * Option strings for `-o`, each a row of the matrix; '' is the default. Empty for formats that cannot be created: they
   * are read from `samples`. Each image is made in a folder of its own, which is the working directory: names of further
   * files (`data_file=data.bin`) are relative to it.
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
  /**
   * Option strings with which the reference refuses some of it (`resize` of fixed images, ...): `option: [cell, ...]`. For the
   * reader: the suite asks the reference each time, and only holds that `does` names what some option string can.
   */
  readonly except?: Readonly<Record<string, readonly string[]>>;
  /** Cells of a row that are not run, and why: ours refuses by intent what the reference does. By the row's name, then the cell's. */
  readonly refused?: Readonly<Record<string, Readonly<Record<string, string>>>>;
  /**
   * Cells in which ours is wanted to do more than the reference, and what: where the reference refuses there, ours is not
   * compared with it.
   */
  readonly more?: Readonly<Record<string, string>>;
  /** Images of this format that cannot be made by `create`: returns the file's bytes and the guest's. */
  readonly samples?: readonly {
    readonly name: string;
    make(): {
      readonly file: Uint8Array;
      readonly guest: Uint8Array;
      /** Further files that the image consists of, by name, in the image's folder. */
      readonly others?: Readonly<Record<string, Uint8Array>>;
    };
  }[];
}
