/** Command lines as GNU getopt_long(3) reads them: clustered and abbreviated options, permutation, its error texts. */
import type { OptionDeclaration, OptionTable, Values } from './declare.js';
import { Exit, tryHelp } from './errors.js';

interface LongName {
  readonly name: string;
  readonly key: string;
}

export interface Parsed<O extends OptionTable> {
  readonly values: Values<O>;
  readonly positional: string[];
}

/**
 * Reads `args` by the table. `program` is what stands before the error texts: `qemu-img`, or `qemu-img info`. With
 * `inOrder` the first word that is no option ends the options; with `negativeNumbers` a word like `-1M` after it is none. Throws Exit for a command line that is wrong, and whatever
 * an option's own `parse` throws, in the order of the words.
 */
export function getopt<O extends OptionTable>(
  program: string,
  args: readonly string[],
  options: O,
  inOrder = process.env.POSIXLY_CORRECT !== undefined,
  negativeNumbers = false,
): Parsed<O> {
  const values: Record<string, unknown> = {};
  const positional: string[] = [];
  const longNames: LongName[] = [];
  const byShort = new Map<string, string>();
  for (const [key, { short, long }] of Object.entries(options)) {
    if (short !== undefined) byShort.set(short, key);
    for (const name of long ?? []) longNames.push({ name, key });
  }

  const wrong = (text: string) => new Exit(1, text, tryHelp(program), program);
  const store = (key: string, argument: string | undefined) => {
    const declaration = options[key] as OptionDeclaration;
    let value: unknown = argument ?? true;
    if (declaration.parse !== undefined) value = declaration.parse(argument ?? '');
    if (declaration.list) {
      const list = values[key];
      if (Array.isArray(list)) list.push(value);
      else values[key] = [value];
    } else values[key] = value;
  };

  let at = 0;
  const readLong = (word: string) => {
    const equals = word.indexOf('=');
    const name = equals < 0 ? word : word.slice(0, equals);
    const found = findLong(name, longNames, options);
    if (found === undefined) throw wrong(`unrecognized option '--${word}'`);
    if (Array.isArray(found)) {
      const names = found.map((each) => `'--${each.name}'`).join(' ');
      throw wrong(`option '--${word}' is ambiguous; possibilities: ${names}`);
    }
    if (options[found.key]!.argument === undefined) {
      if (equals >= 0) throw wrong(`option '--${found.name}' doesn't allow an argument`);
      store(found.key, undefined);
    } else if (equals >= 0) store(found.key, word.slice(equals + 1));
    else if (at < args.length) store(found.key, args[at++]);
    else throw wrong(`option '--${found.name}' requires an argument`);
  };
  const readShort = (cluster: string) => {
    for (let i = 0; i < cluster.length; i++) {
      const letter = cluster[i]!;
      const key = byShort.get(letter);
      if (key === undefined) throw wrong(`invalid option -- '${letter}'`);
      if (options[key]!.argument === undefined) {
        store(key, undefined);
        continue;
      }
      const rest = cluster.slice(i + 1);
      if (rest !== '') store(key, rest);
      else if (at < args.length) store(key, args[at++]);
      else throw wrong(`option requires an argument -- '${letter}'`);
      return;
    }
  };

  while (at < args.length) {
    const word = args[at++]!;
    if (word === '--') break;
    if (negativeNumbers && positional.length > 0 && /^-\d/.test(word)) positional.push(word);
    else if (word.startsWith('--')) readLong(word.slice(2));
    else if (word.startsWith('-') && word !== '-') readShort(word.slice(1));
    else {
      positional.push(word);
      if (inOrder) break;
    }
  }
  positional.push(...args.slice(at));
  return { values: values as Values<O>, positional };
}

/** The option of that name, or that it unambiguously abbreviates; all candidates where it does not; undefined for none. */
function findLong(
  name: string,
  longNames: readonly LongName[],
  options: OptionTable,
): LongName | LongName[] | undefined {
  const exact = longNames.find((each) => each.name === name);
  if (exact !== undefined) return exact;
  for (const [key, { spelled }] of Object.entries(options)) {
    if (spelled?.includes(name)) return { name, key };
  }
  const candidates = longNames.filter((each) => each.name.startsWith(name));
  const first = candidates[0];
  if (first === undefined) return undefined;
  return candidates.every((each) => each.key === first.key) ? first : candidates;
}
