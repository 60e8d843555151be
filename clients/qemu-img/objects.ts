/** `--object`: what can be said about it before anything is opened. */
import { accessSync, constants } from 'node:fs';
import type { UserObject } from '../../src/protocol/commands/common.js';
import { parseJson } from '../../src/protocol/json-stream.js';
import { plain, SyntaxFault } from '../../src/protocol/json-tokens.js';
import { Exit, Shown } from './errors.js';

/** Types that the reference's qemu-img can make. Secrets are looked at here; the others are handed on. */
const TYPES = [
  'authz-list',
  'authz-list-file',
  'authz-simple',
  'main-loop',
  'pr-manager-helper',
  'secret',
  'secret_keyring',
  'thread-context',
  'throttle-group',
  'tls-creds-anon',
  'tls-creds-psk',
  'tls-creds-x509',
];

const SECRET: Readonly<Record<string, string>> = {
  data: 'string',
  file: 'string',
  format: 'QCryptoSecretFormat',
  iv: 'string',
  keyid: 'string',
};

/** `TYPE,id=ID,KEY=VALUE...` or a JSON object. Errors end the program with `code`. */
export function parseObject(text: string, code: number): UserObject {
  const fail = (message: string, hint?: string) => new Exit(code, message, hint);
  const object = text.startsWith('{') ? parseMembers(text, fail) : parsePairs(text, fail);
  const { 'qom-type': type, id } = object;
  if (type === undefined) throw fail("Parameter 'qom-type' is missing");
  if (typeof type !== 'string') throw fail(notString('qom-type'));
  if (!TYPES.includes(type)) throw fail(`Parameter 'qom-type' does not accept value '${type}'`);
  if (id === undefined) throw fail("Parameter 'id' is missing");
  if (type === 'secret') checkSecret(object, fail);
  if (typeof id !== 'string' || !/^[a-z][a-z0-9._-]*$/i.test(id)) {
    throw fail(
      "Parameter 'id' expects an identifier",
      "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
    );
  }
  return { ...object, 'qom-type': type, id };
}

const notString = (name: string) => `Invalid parameter type for '${name}', expected: string`;

type Fail = (message: string, hint?: string) => Exit;

/** `text` begins with a brace: what it is, if anything, is an object. */
function parseMembers(text: string, fail: Fail): Record<string, unknown> {
  try {
    return plain(parseJson(text)) as Record<string, unknown>;
  } catch (error) {
    if (!(error instanceof SyntaxFault)) throw error;
    throw fail(error.message);
  }
}

function parsePairs(text: string, fail: Fail): Record<string, unknown> {
  const object: Record<string, unknown> = {};
  const first = /^[^,=]+(?=,|$)/.exec(text)?.[0];
  if (first !== undefined) object['qom-type'] = first;
  let rest = first === undefined ? text : text.slice(first.length + 1);
  if (first === 'help' || first === '?') {
    throw new Shown(() => `List of user creatable objects:\n${TYPES.map((type) => `  ${type}\n`).join('')}`);
  }
  while (rest !== '') {
    const [, name] = /^([^,=]*)/.exec(rest) as unknown as [string, string];
    if (name === 'help' || name === '?') throw new Shown(() => typeHelp(first));
    if (name === '') throw fail("Invalid parameter ''");
    if (rest[name.length] !== '=') throw fail(`Expected '=' after parameter '${name}'`);
    const [stored] = /^(?:[^,]|,,)*/.exec(rest.slice(name.length + 1)) as unknown as [string];
    object[name] = stored.replaceAll(',,', ',');
    rest = rest.slice(name.length + 1 + stored.length + 1);
  }
  return object;
}

function throttleProperties(): [string, string][] {
  const properties: [string, string][] = [['limits', 'ThrottleLimits']];
  for (const unit of ['bps', 'iops']) {
    for (const side of ['read', 'total', 'write']) {
      if (unit === 'iops' && side === 'total') properties.push(['x-iops-size', 'int']);
      for (const suffix of ['-max-length', '-max', ''])
        properties.push([`x-${unit}-${side}${suffix}`, 'int']);
    }
  }
  return properties;
}

function typeHelp(type: string | undefined): string {
  const properties =
    type === 'secret' ? Object.entries(SECRET) : type === 'throttle-group' ? throttleProperties() : [];
  const lines = properties.map(([name, kind]) => `  ${name}=<${kind}>\n`);
  return lines.length > 0 ? `${type} options:\n${lines.join('')}` : `There are no options for ${type}.\n`;
}

function checkSecret(object: Record<string, unknown>, fail: Fail): void {
  for (const name of Object.keys(object)) {
    if (name !== 'id' && name !== 'qom-type' && SECRET[name] === undefined) {
      throw fail(`Parameter '${name}' is unexpected`);
    }
    if (typeof object[name] !== 'string') throw fail(notString(name));
  }
  const { data, file, format } = object;
  if (format !== undefined && format !== 'raw' && format !== 'base64') {
    throw fail(`Parameter 'format' does not accept value '${String(format)}'`);
  }
  if (data !== undefined && file !== undefined) throw fail("'file' and 'data' are mutually exclusive");
  if (data === undefined && file === undefined) throw fail("Either 'file' or 'data' must be provided");
  if (typeof file === 'string') {
    try {
      accessSync(file, constants.R_OK);
    } catch (error) {
      const why =
        (error as NodeJS.ErrnoException).code === 'EACCES'
          ? 'Permission denied'
          : 'No such file or directory';
      throw fail(`Unable to read ${file}: Failed to open file “${file}”: ${why}`);
    }
  }
}
