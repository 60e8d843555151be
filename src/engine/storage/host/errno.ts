/** Error numbers of the host as the symbolic codes that Node's own errors carry. */
import { constants } from 'node:os';

const NAME_OF_NUMBER = new Map<number, string>();
for (const [name, number] of Object.entries(constants.errno)) {
  if (!NAME_OF_NUMBER.has(number)) NAME_OF_NUMBER.set(number, name);
}
// One number has two names on Linux; Node's errors use this one.
NAME_OF_NUMBER.set(constants.errno.ENOTSUP, 'ENOTSUP');

/** `ENOSPC` for 28. */
export function errnoName(number: number): string {
  return NAME_OF_NUMBER.get(Math.abs(number)) ?? 'EIO';
}

/** The symbolic code of anything that a host call threw; Node knows no names for some numbers (EDQUOT). */
export function codeOf(thrown: unknown): string {
  const { code, errno } = (thrown ?? {}) as { code?: unknown; errno?: unknown };
  if (typeof code === 'string' && /^E[A-Z0-9]+$/.test(code)) return code;
  return typeof errno === 'number' ? errnoName(errno) : 'EIO';
}

/** An error shaped as Node's own for a system call that failed with this number. */
export function systemError(syscall: string, number: number): NodeJS.ErrnoException {
  const code = errnoName(number);
  return Object.assign(new Error(`${code}: ${syscall}`), { code, errno: -number, syscall });
}

/** Codes with which hosts say that they have no such call, flag or ability, as opposed to that it failed. */
const UNAVAILABLE: ReadonlySet<string> = new Set([
  'ENOSYS',
  'ENOTSUP',
  'EOPNOTSUPP',
  'ENOTTY',
  'ENODEV',
  'EINVAL',
]);

export function meansUnavailable(code: string): boolean {
  return UNAVAILABLE.has(code);
}
