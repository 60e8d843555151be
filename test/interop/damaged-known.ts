/** Where ours is meant to answer otherwise than the reference on damaged images, and why. */
interface Meant {
  readonly line: RegExp;
  readonly ours: RegExp;
  readonly theirs: RegExp;
}

const MEANT: readonly Meant[] = [];

export function isMeant(line: string, ours: string, theirs: string): boolean {
  return MEANT.some((each) => each.line.test(line) && each.ours.test(ours) && each.theirs.test(theirs));
}
