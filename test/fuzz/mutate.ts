/**
 * Structured mutation: wrong values in known fields and table entries (boundaries, powers of two, off by one, sizes of
 * the file, each other's values), damaged text, and changes that know nothing of the format.
 */
import type { Random } from './random.js';
import type { Field, Seed, SeedFile, Table, TextRange } from './seed.js';

export interface Mutant {
  readonly seed: string;
  /** What was done, for the report. */
  readonly changes: readonly string[];
  readonly image: Uint8Array;
  readonly others: ReadonlyMap<string, Uint8Array>;
}

interface Work {
  readonly random: Random;
  readonly file: SeedFile;
  bytes: Uint8Array;
  readonly changes: string[];
}

/** A Uint8Array, not a Buffer: a Buffer's slice() would not copy. */
function joined(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

function get(bytes: Uint8Array, { at, width, little }: Pick<Field, 'at' | 'width' | 'little'>): bigint {
  let value = 0n;
  for (let i = 0; i < width; i++) {
    value = (value << 8n) | BigInt(bytes[at + (little ? width - 1 - i : i)] ?? 0);
  }
  return value;
}

function set(
  bytes: Uint8Array,
  { at, width, little }: Pick<Field, 'at' | 'width' | 'little'>,
  value: bigint,
): void {
  for (let i = 0; i < width; i++) {
    const to = at + (little ? i : width - 1 - i);
    if (to < bytes.length) bytes[to] = Number((value >> BigInt(8 * i)) & 0xffn);
  }
}

/** A value that is likely to be at the edge of something. */
function edge(
  random: Random,
  width: number,
  current: bigint,
  fileSize: number,
  others: () => bigint,
): bigint {
  const bits = BigInt(8 * width);
  const max = (1n << bits) - 1n;
  const size = BigInt(fileSize);
  const power = 1n << BigInt(random.below(8 * width));
  const choices: (() => bigint)[] = [
    () => 0n,
    () => BigInt(1 + random.below(4)),
    () => max,
    () => max - BigInt(random.below(512)),
    () => 1n << (bits - 1n),
    () => (1n << (bits - 1n)) - 1n,
    () => power,
    () => power - 1n,
    () => power + 1n,
    () => current + 1n,
    () => current - 1n,
    () => current * 2n,
    () => current / 2n,
    () => current ^ power,
    () => current + power,
    () => size,
    () => size - 1n,
    () => size + 1n,
    () => size / 512n,
    () => (size / 65536n) * 65536n,
    () => BigInt(random.below(fileSize + 1)),
    () => BigInt(random.below(fileSize + 1) & ~511),
    others,
    others,
  ];
  return random.pick(choices)() & max;
}

function entry(table: Table, index: number): Field {
  return {
    name: `${table.name}[${index}]`,
    at: table.at + index * table.width,
    width: table.width,
    little: table.little,
  };
}

function anyField(work: Work): Field {
  const { file, random } = work;
  if (file.tables.length > 0 && (file.fields.length === 0 || random.once(2))) {
    const table = random.pick(file.tables);
    return entry(table, random.below(table.count));
  }
  return random.pick(file.fields);
}

function changeField(work: Work, field: Field): void {
  const { random, bytes } = work;
  const current = get(bytes, field);
  const value = edge(random, field.width, current, bytes.length, () => get(bytes, anyField(work)));
  set(bytes, field, value);
  work.changes.push(`${field.name} = 0x${value.toString(16)}`);
}

/** Several entries at once: swapped, copied over each other (aliasing), all alike, or pointing back into the file. */
function changeTable(work: Work, table: Table): void {
  const { random, bytes } = work;
  const one = entry(table, random.below(table.count));
  const other = entry(table, random.below(table.count));
  const [a, b] = [get(bytes, one), get(bytes, other)];
  switch (random.below(4)) {
    case 0:
      set(bytes, one, b);
      set(bytes, other, a);
      work.changes.push(`swap ${one.name} ${other.name}`);
      break;
    case 1:
      set(bytes, other, a);
      work.changes.push(`${other.name} = ${one.name}`);
      break;
    case 2: {
      const count = 1 + random.below(Math.min(64, table.count));
      const first = random.below(table.count - count + 1);
      for (let i = 0; i < count; i++) set(bytes, entry(table, first + i), a);
      work.changes.push(`${count} entries from ${table.name}[${first}] = ${one.name}`);
      break;
    }
    default: {
      // At the table itself, another table, or the start, keeping the flags of the entry.
      const target = random.once(3) ? 0 : random.pick(work.file.tables).at;
      const flags = a & ~((1n << BigInt(Math.max(8, 8 * table.width - 8))) - 1n);
      const value = flags | BigInt(random.once(2) ? target : Math.floor(target / 512));
      set(bytes, one, value);
      work.changes.push(`${one.name} -> ${target}`);
    }
  }
}

function changeBytes(work: Work): void {
  const { random, bytes } = work;
  const length = bytes.length;
  if (length === 0) return;
  // Half of the changes go to the first sectors: that is where formats keep what matters.
  const somewhere = () => random.below(random.once(2) ? Math.min(length, 2048) : length);
  const at = somewhere();
  switch (random.below(7)) {
    case 0:
      bytes[at]! ^= 1 << random.below(8);
      work.changes.push(`bit at ${at}`);
      break;
    case 1:
      bytes[at] = random.pick([0, 1, 0x7f, 0x80, 0xff, random.u32() & 0xff]);
      work.changes.push(`byte at ${at}`);
      break;
    case 2: {
      const noise = random.bytes(1 + random.below(64)).subarray(0, length - at);
      bytes.set(noise, at);
      work.changes.push(`${noise.length} random bytes at ${at}`);
      break;
    }
    case 3: {
      const from = somewhere();
      const count = 1 + random.below(Math.min(4096, length - Math.max(from, at)));
      bytes.copyWithin(at, from, from + count);
      work.changes.push(`${count} bytes from ${from} copied to ${at}`);
      break;
    }
    case 4: {
      const cut = random.once(2) ? at : random.below(length) & ~511;
      work.bytes = bytes.subarray(0, cut);
      work.changes.push(`cut at ${cut}`);
      break;
    }
    case 5: {
      const more = random.once(2)
        ? new Uint8Array(1 + random.below(70_000))
        : random.bytes(1 + random.below(2000));
      work.bytes = joined(bytes, more);
      work.changes.push(`${more.length} more bytes`);
      break;
    }
    default: {
      const until = Math.min(length, at + 1 + random.below(4096));
      bytes.fill(random.once(2) ? 0 : 0xff, at, until);
      work.changes.push(`filled ${at} to ${until}`);
    }
  }
}

const NUMBERS = [
  '0',
  '1',
  '-1',
  '511',
  '4294967295',
  '4294967296',
  '9007199254740991',
  '9007199254740993',
  '18446744073709551615',
  '18446744073709551616',
  '99999999999999999999999999',
  '0x10',
  '1e3',
  '1.5',
  '',
];
const TOKENS = [
  '"',
  "'",
  '\0',
  '\n',
  '\r',
  '=',
  ',',
  ',,',
  ' ',
  '\t',
  '#',
  '{',
  '}',
  '[',
  ']',
  '\\',
  '\\u0000',
  ':',
  '/',
  '../../etc/passwd',
  '/etc/passwd',
  '<data>',
  '</data>',
  '&amp;',
  '<!ENTITY',
  '%s%n',
  'A'.repeat(3000),
  '\u00ff',
  'FLAT',
  'ZERO',
  'SPARSE',
  'RW ',
];

/** Longer ones take time in the mutator, not in the parser. */
const MAX_TEXT = 400_000;

/** Damages text: numbers, lines, single characters, tokens that mean something to some parser. */
export function mutateText(random: Random, text: string, changes: string[]): string {
  return damageText(random, text, changes).slice(0, MAX_TEXT);
}

function damageText(random: Random, text: string, changes: string[]): string {
  const at = random.below(text.length + 1);
  switch (random.below(8)) {
    case 0: {
      const runs = [...text.matchAll(/\d+/g)];
      if (runs.length === 0) return text;
      const run = random.pick(runs);
      const value = random.pick(NUMBERS);
      changes.push(`number ${run[0]} -> ${value}`);
      return text.slice(0, run.index) + value + text.slice(run.index + run[0].length);
    }
    case 1: {
      const lines = text.split('\n');
      const [line] = lines.splice(random.below(lines.length), 1);
      changes.push(`without line ${line?.slice(0, 40)}`);
      return lines.join('\n');
    }
    case 2: {
      const lines = text.split('\n');
      const from = random.below(lines.length);
      const most = Math.ceil(MAX_TEXT / (lines[from]!.length + 1));
      const times = Math.min(most, random.once(10) ? 5000 : 1 + random.below(4));
      lines.splice(random.below(lines.length), 0, ...new Array<string>(times).fill(lines[from]!));
      changes.push(`line ${from} ${times} times more`);
      return lines.join('\n');
    }
    case 3: {
      const token = random.pick(TOKENS);
      changes.push(`token ${JSON.stringify(token.slice(0, 20))} at ${at}`);
      return text.slice(0, at) + token + text.slice(at);
    }
    case 4: {
      const until = at + 1 + random.below(30);
      changes.push(`without ${at} to ${until}`);
      return text.slice(0, at) + text.slice(until);
    }
    case 5:
      changes.push(`text cut at ${at}`);
      return text.slice(0, at);
    case 6: {
      const from = random.below(text.length);
      const part = text.slice(from, from + 1 + random.below(200));
      const times = random.once(20) ? 1000 : 1 + random.below(3);
      changes.push(`${part.length} characters from ${from} ${times} times at ${at}`);
      return text.slice(0, at) + part.repeat(times) + text.slice(at);
    }
    default: {
      const character = String.fromCharCode(random.below(256));
      changes.push(`character ${character.charCodeAt(0)} at ${at}`);
      return text.slice(0, at) + character + text.slice(at + 1);
    }
  }
}

function changeText(work: Work, range: TextRange): void {
  const { random, bytes } = work;
  if (range.at >= bytes.length) return;
  const text = Buffer.from(bytes.subarray(range.at, range.at + range.length)).toString('latin1');
  const used = range.fixed ? text.slice(0, text.indexOf('\0') < 0 ? text.length : text.indexOf('\0')) : text;
  const changed = Buffer.from(mutateText(random, used, work.changes), 'latin1');
  if (!range.fixed) {
    work.bytes = Buffer.concat([
      bytes.subarray(0, range.at),
      changed,
      bytes.subarray(range.at + range.length),
    ]);
    return;
  }
  bytes.fill(0, range.at, range.at + range.length);
  bytes.set(changed.subarray(0, Math.max(0, Math.min(range.length, bytes.length - range.at))), range.at);
}

function change(work: Work): void {
  const { random, file } = work;
  const ways: (() => void)[] = [() => changeBytes(work)];
  for (let i = 0; i < 3; i++) {
    if (file.fields.length > 0) ways.push(() => changeField(work, random.pick(file.fields)));
    if (file.tables.length > 0) {
      const table = random.pick(file.tables);
      ways.push(() => changeField(work, entry(table, random.below(table.count))));
    }
  }
  if (file.tables.length > 0) ways.push(() => changeTable(work, random.pick(file.tables)));
  for (const text of file.texts)
    ways.push(
      () => changeText(work, text),
      () => changeText(work, text),
    );
  random.pick(ways)();
}

/** One to four changes to one of the seed's files: most of them to the image itself. */
export function mutate(seed: Seed, random: Random): Mutant {
  const index = random.once(3) ? random.below(seed.files.length) : 0;
  const changes: string[] = [];
  const results = seed.files.map((file, i) => {
    const work: Work = { random, file, bytes: new Uint8Array(file.bytes), changes };
    if (i === index) {
      const count = random.pick([1, 1, 1, 2, 2, 3, 4]);
      for (let done = 0; done < count; done++) change(work);
    }
    return file.assemble?.(work.bytes) ?? work.bytes;
  });
  return {
    seed: seed.name,
    changes,
    image: results[0]!,
    others: new Map(seed.files.map((file, i) => [file.name, results[i]!])),
  };
}

/** The seed as it is: it must be readable, or the suite would test nothing. */
export function unchanged(seed: Seed): Mutant {
  const results = seed.files.map((file) => file.assemble?.(file.bytes) ?? file.bytes);
  return {
    seed: seed.name,
    changes: [],
    image: results[0]!,
    others: new Map(seed.files.map((file, i) => [file.name, results[i]!])),
  };
}
