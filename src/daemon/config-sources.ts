/** Where settings come from: flags first, then the environment, then the file; each only for what those before do not say. */
import { readFileSync, statSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { ConfigError } from './config-values.js';

export interface Setting {
  readonly flag: string;
  /** Name of the value in the help; absent: a switch. */
  readonly value?: string;
  readonly repeat?: boolean;
  readonly default?: string;
  /** Only on the command line. */
  readonly once?: boolean;
  readonly doc: string;
}

/** The texts that were given for one setting, one unless it is repeatable, and what to call it in messages about them. */
export interface Given {
  readonly texts: readonly string[];
  readonly name: string;
  readonly from: 'flag' | 'environment' | 'file';
}

export type Environment = Readonly<Record<string, string | undefined>>;

/** `IMGD_MAX_JOBS` for `max-jobs`. */
export function variableOf(setting: Setting): string {
  return `IMGD_${setting.flag.toUpperCase().replaceAll('-', '_')}`;
}

export function readFlags(settings: readonly Setting[], argv: readonly string[]): Map<string, Given> {
  const options = Object.fromEntries(
    settings.map((setting) => [
      setting.flag,
      {
        type: setting.value === undefined ? 'boolean' : 'string',
        multiple: setting.repeat === true,
      } as const,
    ]),
  );
  let values: Record<string, string | boolean | (string | boolean)[] | undefined>;
  try {
    ({ values } = parseArgs({ args: [...argv], options, strict: true, allowPositionals: false }));
  } catch (error) {
    // Node's text goes on with advice about `--`; the first sentence says what is wrong.
    throw new ConfigError((error as Error).message.split('. ')[0]!.split('\n')[0]!);
  }
  const given = new Map<string, Given>();
  for (const [flag, value] of Object.entries(values)) {
    if (value === undefined) continue;
    const texts = [value].flat().map((text) => (text === true ? 'yes' : String(text)));
    given.set(flag, { texts, name: `--${flag}`, from: 'flag' });
  }
  return given;
}

/** An empty variable says nothing. Those of repeatable settings hold several values with commas between. */
export function readEnvironment(settings: readonly Setting[], env: Environment): Map<string, Given> {
  const given = new Map<string, Given>();
  for (const setting of settings) {
    if (setting.once) continue;
    const name = variableOf(setting);
    const text = env[name];
    if (!text) continue;
    const texts = setting.repeat ? text.split(',').map((each) => each.trim()) : [text];
    given.set(setting.flag, { texts, name, from: 'environment' });
  }
  return given;
}

/** Lines `NAME = VALUE`, where NAME is a flag's without its dashes; `#` begins a comment line; repeatable ones may come again. */
export function readFile(settings: readonly Setting[], file: string): Map<string, Given> {
  let text: string;
  try {
    if ((statSync(file).mode & 0o002) !== 0)
      throw new ConfigError(`${file}: others may write it (chmod o-w)`);
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(`cannot read ${file}: ${(error as NodeJS.ErrnoException).code}`);
  }
  const given = new Map<string, Given>();
  text.split('\n').forEach((line, at) => {
    const where = `${file}:${at + 1}`;
    if (/^\s*([#;]|$)/.test(line)) return;
    const [, flag, value] = /^\s*([\w-]+)\s*=\s*(.*?)\s*$/.exec(line) ?? [];
    if (flag === undefined || value === undefined) {
      throw new ConfigError(`${where}: a line is NAME = VALUE, or a comment after #`);
    }
    const setting = settings.find((each) => each.flag === flag && !each.once);
    if (setting === undefined) throw new ConfigError(`${where}: there is no setting '${flag}'`);
    if (value === '') throw new ConfigError(`${where}: ${flag} has no value`);
    const before = given.get(flag);
    if (before !== undefined && !setting.repeat) throw new ConfigError(`${where}: ${flag} is set twice`);
    given.set(flag, { texts: [...(before?.texts ?? []), value], name: `${where}: ${flag}`, from: 'file' });
  });
  return given;
}
