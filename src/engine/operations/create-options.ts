/** What options a new image takes: those of its format and those of the file that it is put in. */
import type { FormatOptions } from '../../protocol/commands/common.js';
import { ImageError } from '../error.js';
import { loadDriver } from '../formats/index.js';
import type { FormatDriver } from '../node/driver.js';
import { protocolOf, typeOf, withoutProtocol } from '../node/flat-options.js';
import type { OptionDeclaration, OptionValue } from '../node/option-table.js';

/** What a file of the host takes when it is created, in the reference's order. */
const FILE_OPTIONS: readonly OptionDeclaration[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  { name: 'nocow', type: 'bool', help: 'Turn off copy-on-write (valid only on btrfs)' },
  {
    name: 'preallocation',
    type: 'string',
    help: 'Preallocation mode (allowed values: off, falloc, full)',
  },
  {
    name: 'extent_size_hint',
    type: 'size',
    help: 'Extent size hint for the image file, 0 to disable',
  },
];

/** Protocols in which no image can be made, by the prefix of their filenames: QEMU's driver name. */
const READ_ONLY_PROTOCOLS: Readonly<Record<string, string>> = {
  'null-co': 'null-co',
  'null-aio': 'null-aio',
  http: 'http',
  https: 'https',
  ftp: 'ftp',
  ftps: 'ftps',
  fat: 'vvfat',
};

/**
 * The path in a filename whose protocol can create files.
 *
 * @throws ImageError `invalid` for an unknown protocol, `unsupported` for one that creates nothing.
 */
export function creatablePath(filename: string): string {
  const protocol = protocolOf(filename);
  if (protocol === undefined) return filename;
  if (protocol === 'file' || protocol === 'host_device') return withoutProtocol(filename);
  const driver = READ_ONLY_PROTOCOLS[protocol];
  if (driver === undefined) throw new ImageError('invalid', `Unknown protocol '${protocol}'`);
  throw new ImageError('unsupported', `Protocol driver '${driver}' does not support image creation`);
}

/** The driver of a format whose images can be created. */
export async function creatableDriver(format: string): Promise<FormatDriver> {
  const driver = await loadDriver(format);
  if (driver === undefined) throw new ImageError('invalid', `Unknown file format '${format}'`);
  if (driver.create === undefined) {
    throw new ImageError('unsupported', `Format driver '${format}' does not support image creation`);
  }
  return driver;
}

/** All options for a new image in a file: the format's, then those of the file that the format does not take itself. */
export function createTable(driver: FormatDriver): readonly OptionDeclaration[] {
  const own = new Set(driver.createOptions.map((option) => option.name));
  return [...driver.createOptions, ...FILE_OPTIONS.filter((option) => !own.has(option.name))];
}

/** True where the option goes to the file, not to the format. */
export function isFileOption(driver: FormatDriver, name: string): boolean {
  return (
    FILE_OPTIONS.some((option) => option.name === name) &&
    !driver.createOptions.some((option) => option.name === name)
  );
}

/** Options of one image to be: typed, and as they are shown. */
export interface CreateOptions {
  readonly driver: FormatDriver;
  readonly table: readonly OptionDeclaration[];
  /** What the user gave, typed. */
  readonly given: Record<string, OptionValue>;
  /** The user's own words for what was given as text: `lazy_refcounts=yes` is shown as it was written. */
  readonly words: Record<string, string>;
}

/**
 * Types the options by the format's table and takes in what has parameters of its own (`-b`, `-F`).
 *
 * @throws ImageError `invalid`: unknown option, bad value, or a backing file where the format has none.
 */
export function parseCreateOptions(
  driver: FormatDriver,
  options: FormatOptions,
  backing?: string,
  backingFormat?: string,
): CreateOptions {
  const table = createTable(driver);
  const given: Record<string, OptionValue> = {};
  const words: Record<string, string> = {};
  for (const [name, value] of Object.entries(options)) {
    const declaration = table.find((option) => option.name === name);
    if (declaration === undefined) throw new ImageError('invalid', `Invalid parameter '${name}'`);
    given[name] = typeOf(declaration, value);
    if (typeof value === 'string') words[name] = value;
  }
  const add = (name: string, value: string, what: string) => {
    if (!table.some((option) => option.name === name)) {
      throw new ImageError('invalid', `${what} not supported for file format '${driver.name}'`);
    }
    given[name] = value;
    words[name] = value;
  };
  if (backing !== undefined) add('backing_file', backing, 'Backing file');
  if (backingFormat !== undefined) add('backing_fmt', backingFormat, 'Backing file format');
  return { driver, table, given, words };
}

/** Given values over defaults, in the table's order. */
export function effectiveOptions({ table, given }: CreateOptions): Record<string, OptionValue> {
  const out: Record<string, OptionValue> = {};
  for (const { name, default: byDefault } of table) {
    const value = given[name] ?? byDefault;
    if (value !== undefined) out[name] = value;
  }
  return out;
}

/** `name=value name=value`: every option with a value, in the table's order, as the reference shows a creation. */
export function describeOptions({ table, given, words }: CreateOptions): string {
  const parts: string[] = [];
  for (const { name, type, default: byDefault } of table) {
    const value = given[name] ?? byDefault;
    if (value === undefined) continue;
    let text: string;
    if (type === 'string') text = String(value).replaceAll(',', ',,');
    else if (type === 'bool') text = words[name] ?? (value ? 'on' : 'off');
    // A number beyond 63 bits comes from a negative one, and is shown as that.
    else text = Number(value) < 2 ** 63 ? BigInt(Number(value)).toString() : (words[name] ?? String(value));
    parts.push(`${name}=${text}`);
  }
  return parts.join(' ');
}
