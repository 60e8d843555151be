/** Objects that operations refer to by their ids: secrets, throttle groups. */
import { readFileSync, statSync } from 'node:fs';
import { errnoText, ImageError } from '../../engine/error.js';
import { absolutePath, checkAllowed, type OpenPolicy } from '../../engine/node/gate.js';
import { ThrottleGroup } from '../../engine/node/throttle-group.js';
import type { UserObject } from '../../protocol/commands/common.js';
import type { GroupAccess } from '../handlers/images.js';
import type { ObjectOptions } from './declarations.js';
import { QmpError } from './reply.js';

/** A file with a secret is not larger. */
const MAX_SECRET = 64 * 1024;
const MAX_OBJECTS = 4096;

const TYPES = [
  { name: 'secret', parent: 'secret_common' },
  { name: 'throttle-group', parent: 'object' },
];

/** QAPI's rule for ids. */
export function wellFormed(id: string): boolean {
  return /^[A-Za-z][A-Za-z0-9._-]{0,127}$/.test(id);
}

/** Throws where its limits are none. */
function checkGroup(object: UserObject): void {
  try {
    new ThrottleGroup(object);
  } catch (error) {
    throw error instanceof ImageError ? new QmpError(error.message) : error;
  }
}

export class Objects {
  readonly #objects = new Map<string, ObjectOptions>();
  readonly #policy: OpenPolicy;
  readonly #groups: GroupAccess;

  constructor(policy: OpenPolicy, groups: GroupAccess) {
    this.#policy = policy;
    this.#groups = groups;
  }

  async add(object: ObjectOptions): Promise<void> {
    const { id } = object;
    if (!wellFormed(id)) throw new QmpError("Parameter 'id' expects an identifier");
    if (object['qom-type'] === 'throttle-group') checkGroup(object);
    if (this.#objects.has(id)) {
      throw new QmpError(`attempt to add duplicate property '${id}' to object (type 'container')`);
    }
    if (this.#objects.size >= MAX_OBJECTS) throw new QmpError(`more than ${MAX_OBJECTS} objects`);
    this.#objects.set(id, object['qom-type'] === 'secret' ? this.#secret(object) : object);
    if (object['qom-type'] !== 'throttle-group') return;
    try {
      await this.#groups.add(object);
    } catch (error) {
      this.#objects.delete(id);
      throw error;
    }
  }

  async delete(id: string): Promise<void> {
    const object = this.#objects.get(id);
    if (object?.['qom-type'] === 'throttle-group') await this.#groups.remove(id);
    if (!this.#objects.delete(id)) throw new QmpError(`object '${id.slice(0, 128)}' not found`);
  }

  types(implementing: string | undefined): readonly { name: string; parent: string }[] {
    if (implementing === undefined || implementing === 'object' || implementing === 'user-creatable')
      return TYPES;
    return TYPES.filter(({ name, parent }) => name === implementing || parent === implementing);
  }

  /** Those that a value refers to: no job is given secrets that it has not asked for. */
  referenced(value: unknown): ObjectOptions[] {
    if (this.#objects.size === 0) return [];
    const text = JSON.stringify(value);
    return [...this.#objects.values()].filter(({ id }) =>
      new RegExp(`(?<![\\w.-])${id.replaceAll('.', '\\.')}(?![\\w.-])`).test(text),
    );
  }

  /** A file is read now, as in QEMU: it may be gone when the secret is needed. */
  #secret(object: Extract<ObjectOptions, { 'qom-type': 'secret' }>): ObjectOptions {
    const { data, file, format = 'raw', ...rest } = object;
    if (data !== undefined && file !== undefined)
      throw new QmpError("'file' and 'data' are mutually exclusive");
    if (data === undefined && file === undefined)
      throw new QmpError("Either 'file' or 'data' must be provided");
    if (rest.keyid !== undefined || rest.iv !== undefined) {
      throw new QmpError('Secrets that are encrypted with another one are not supported');
    }
    const text = file === undefined ? data! : this.#read(file);
    if (format === 'base64' && !/^[A-Za-z0-9+/\s]*={0,2}\s*$/.test(text)) {
      throw new QmpError('Base64 data contains invalid characters');
    }
    return { ...rest, data: text, format };
  }

  #read(file: string): string {
    try {
      const path = absolutePath(file, process.cwd());
      checkAllowed(path, file, 'caller', this.#policy);
      // A pipe or a device would hold the daemon up.
      const found = statSync(path);
      if (!found.isFile()) throw new QmpError(`Unable to read ${file}: not a file`);
      if (found.size > MAX_SECRET) throw new QmpError(`Unable to read ${file}: too large for a secret`);
      return readFileSync(path, 'utf8');
    } catch (error) {
      if (error instanceof QmpError) throw error;
      if (error instanceof ImageError) throw new QmpError(error.message);
      const reason = errnoText((error as NodeJS.ErrnoException).code ?? '');
      throw new QmpError(`Unable to read ${file}: Failed to open file “${file}”: ${reason}`);
    }
  }
}
