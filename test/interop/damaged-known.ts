/** Where ours is meant to answer otherwise than the reference on damaged images, and why. */
interface Meant {
  readonly why: string;
  /** Of the command line, with the damage before it. */
  readonly line?: RegExp;
  readonly ours?: RegExp;
  readonly theirs?: RegExp;
}

const MEANT: readonly Meant[] = [
  {
    why: 'clusters of a bitmap that are not in the file: the reference takes them for zeros, and forgets what was dirty',
    ours: /^exit 1\n.*Could not read bitmap/,
  },
  {
    why: 'what counts as free but is our own metadata is never taken; the reference writes over it, or finds another place',
    ours: /^exit 1\nqcow2: Marking image as corrupt: Preventing invalid write/,
  },
  {
    why: 'bitmaps that cannot be stored are an error here; the reference says so, and exits with 0',
    ours: /^exit 1\n(?:.*\n)*?qemu-img: Lost persistent bitmaps/,
  },
  {
    why: 'any write of the header makes the repair of the reference forget the snapshots, sound as they may be',
    line: /autoclear: .*: check -r/,
    theirs: /^Leaked cluster/m,
  },
  {
    why: 'where refcount blocks lie counts for the reference when an image shrinks; here it is for `check` to say',
    line: /: resize --shrink/,
    theirs: /Failed to discard unused refblocks/,
  },
  {
    why: 'the reference marks bitmaps on every opening for writing, and meets then what lies on their directory',
    theirs: /Can't update bitmap directory/,
  },
  {
    why: 'counts are looked at before anything is changed, so that the error is another one',
    line: /: snapshot -[acd]/,
    ours: /^exit 1\n.*: Invalid argument$/m,
    theirs: /^exit 1\n(?:.*\n)?.*: (?:File too large|Resource temporarily unavailable|Input\/output error)$/m,
  },
  {
    why: "damage that lies behind a difference is met sooner, and said; the outcome is the reference's",
    line: /: compare/,
    ours: /^exit 1\nContent mismatch/,
    theirs: /^exit 1\nContent mismatch/,
  },
  {
    why: 'the reference fails to put new refcounts where the old ones were; ours puts them elsewhere',
    line: /: check -r all/,
    ours: /Double checking the fixed image now\.\.\.\nNo errors were found/,
    theirs: /Rebuilding refcount structure\n(?:.*\n)*qemu-img: Check failed/,
  },
  {
    why: 'the reference aborts',
    theirs: /^exit null\n/,
  },
  {
    why: "the reference's repair forgets the snapshots of an image with bitmaps, and what was wrong with them",
    line: /: check -r/,
    ours: /^Repairing snapshot table entry/m,
    theirs: /^(?:(?!snapshot).*\n)*$/,
  },
  {
    why: 'the reference prints the beginning of a map before it meets what it cannot read',
    line: /: map/,
    ours: /Could not read file metadata/,
    theirs: /^exit 1\n(?:\[|Offset)/,
  },
];

export function isMeant(line: string, ours: string, theirs: string): boolean {
  return MEANT.some(
    (each) =>
      (each.line ?? /^/).test(line) && (each.ours ?? /^/).test(ours) && (each.theirs ?? /^/).test(theirs),
  );
}

/**
 * Without what is said when all is over: the reference stores bitmaps and frees clusters on closing, whatever was done, and
 * says what it could not without a change of the exit code; ours does so only where there is something to be stored.
 */
export function withoutClosing(text: string): string {
  return (
    text
      .replace(/^qcow2_free_clusters failed: .*\n/gm, '')
      .replace(/^(?:qcow2: Marking image as corrupt: .*\n)?qemu-img: Lost persistent bitmaps .*\n/gm, '')
      // A warning's second line has no end there.
      .replace(/to fix\.\n?/g, 'to fix.\n')
      .replace(/^qemu-img: Failed to flush the (?:refcount block|L2 table) cache: .*\n/gm, '')
  );
}
