/** Texts of settings to values. What is wrong is thrown as one line that begins with the setting's name as the user wrote it. */
import { readFileSync, realpathSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { isAbsolute } from 'node:path';
import type * as Tls from 'node:tls';
import { type Role, roles } from '../protocol/roles.js';

/** A wrong flag or value: one line for the user, exit code 2. */
export class ConfigError extends Error {}

export interface Token {
  readonly token: string;
  readonly role: Role;
}

export interface TlsFiles {
  /** PEM. */
  readonly cert: string;
  readonly key: string;
}

export interface Endpoint {
  readonly host: string;
  readonly port: number;
}

/** @param name the setting, as messages call it: `--max-jobs`, `imgd.conf:3: max-jobs`. */
export function parseCount(text: string, name: string, least: number, most: number): number {
  const number = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
  if (number >= least && number <= most) return number;
  throw new ConfigError(`${name} takes a whole number from ${least} to ${most}, not '${text}'`);
}

export function parseChoice<T extends string>(text: string, name: string, choices: readonly T[]): T {
  const found = choices.find((choice) => choice === text);
  if (found !== undefined) return found;
  throw new ConfigError(`${name} takes ${choices.join(', ')}, not '${text}'`);
}

export function parseSwitch(text: string, name: string): boolean {
  const word = text.toLowerCase();
  if (['yes', 'true', 'on', '1'].includes(word)) return true;
  if (['no', 'false', 'off', '0'].includes(word)) return false;
  throw new ConfigError(`${name} takes yes or no, not '${text}'`);
}

export function isLoopback(host: string): boolean {
  return /^(::ffff:)?127(\.\d{1,3}){3}$|^::1$|^localhost$/i.test(host);
}

/** `ADDRESS:PORT`, an IPv6 address in brackets. */
export function parseListen(text: string, name: string): Endpoint {
  const match = /^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})$/.exec(text);
  if (!match) {
    throw new ConfigError(`${name} takes an address and a port, as 127.0.0.1:8040, not '${text}'`);
  }
  const port = Number(match[2]);
  if (port > 65_535) throw new ConfigError(`${name}: there is no port ${port}`);
  return { host: match[1]!.replace(/^\[|\]$/g, ''), port };
}

export function parseOrigin(text: string, name: string): string {
  if (URL.canParse(text) && new URL(text).origin === text) return text;
  throw new ConfigError(`${name} takes an origin, as http://host:port, not '${text}'`);
}

/** A name by which clients call this machine, with or without a port. */
export function parseHost(text: string, name: string): string {
  if (/^([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?$/.test(text)) return text.toLowerCase();
  throw new ConfigError(`${name} takes a host, as imgd.example or imgd.example:8040, not '${text}'`);
}

/** Permission bits of the socket. Others than its user and group are never let in: everybody may make images else. */
export function parseMode(text: string, name: string): number {
  if (/^0?[0-7]{3}$/.test(text) && (Number.parseInt(text, 8) & 0o117) === 0) return Number.parseInt(text, 8);
  throw new ConfigError(
    `${name} takes 600 or 660 (others than user and group are not let in), not '${text}'`,
  );
}

/** A group's number, or its name as /etc/group has it. */
export function parseGroup(text: string, name: string, file = '/etc/group'): number {
  if (/^\d{1,10}$/.test(text)) return Number(text);
  const line = readText(file, name)
    .split('\n')
    .map((entry) => entry.split(':'))
    .find(([group]) => group === text);
  if (line?.[2] === undefined) throw new ConfigError(`${name}: there is no group '${text}'`);
  return Number(line[2]);
}

export function resolveRoot(folder: string, name: string): string {
  let real: string;
  try {
    real = realpathSync(folder);
  } catch (error) {
    throw new ConfigError(`${name} ${folder}: ${(error as NodeJS.ErrnoException).code}`);
  }
  if (!isAbsolute(real) || !statSync(real).isDirectory())
    throw new ConfigError(`${name} ${folder}: not a folder`);
  return real;
}

function readText(file: string, name: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new ConfigError(`${name} ${file}: ${(error as NodeJS.ErrnoException).code}`);
  }
}

/** A file that others than user and group can neither read nor write. */
function readSecret(file: string, name: string): string {
  try {
    if ((statSync(file).mode & 0o007) !== 0) {
      throw new ConfigError(`${name} ${file}: others may read or write it (chmod 600)`);
    }
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(`${name} ${file}: ${(error as NodeJS.ErrnoException).code}`);
  }
  return readText(file, name);
}

/** Lines `TOKEN [ROLE]`; without a role a token is an admin's. */
export function readTokens(file: string, name: string): Token[] {
  const lines = readSecret(file, name)
    .split('\n')
    .map((line, at) => ({ at: at + 1, words: line.trim().split(/\s+/) }))
    .filter(({ words }) => words[0] !== '' && !words[0]!.startsWith('#'));
  if (lines.length === 0) throw new ConfigError(`${name} ${file}: no token in it`);
  return lines.map(({ at, words: [token = '', role = 'admin', ...rest] }) => {
    // The value is not shown: it is a secret, and so may be what stands where a role should.
    if (!/^[\x21-\x7e]{16,}$/.test(token)) {
      throw new ConfigError(
        `${name} ${file}, line ${at}: a token must have at least 16 printable characters`,
      );
    }
    if (rest.length > 0 || !roles.includes(role as Role)) {
      throw new ConfigError(
        `${name} ${file}, line ${at}: a role (${roles.join(', ')}) or nothing follows the token`,
      );
    }
    return { token, role: role as Role };
  });
}

/** Certificate and key, which must belong together. */
export function readTls(cert: string, certName: string, key: string, keyName: string): TlsFiles {
  const files = { cert: readText(cert, certName), key: readSecret(key, keyName) };
  try {
    const { createSecureContext } = createRequire(import.meta.url)('node:tls') as typeof Tls;
    createSecureContext(files);
  } catch (error) {
    // OpenSSL's words, without its numbers; they quote nothing of the files.
    const reason = (error as { reason?: string }).reason ?? (error as Error).message.split('\n')[0];
    throw new ConfigError(`${certName} ${cert}, ${keyName} ${key}: ${reason}`);
  }
  return files;
}
