/** Who is at the other end of a Unix socket: SO_PEERCRED. */
import type { Socket } from 'node:net';
import { libcFunction } from '../libc.js';
import type { PeerCredentials } from './transport.js';

type GetSockOpt = (fd: number, level: number, name: number, value: Uint8Array, length: Uint8Array) => number;

/** Linux's numbers, as all 64-bit machines that Node runs on have them. */
const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
const SO_DOMAIN = 39;

let getsockopt: { readonly call: GetSockOpt | undefined } | undefined;

function socketOption(fd: number, name: number, size: number): Uint32Array | undefined {
  getsockopt ??= {
    call: libcFunction<never>('int getsockopt(int fd, int level, int name, void *value, void *length)') as
      | GetSockOpt
      | undefined,
  };
  const value = new Uint32Array(size / 4);
  const length = new Uint32Array([size]);
  const bytes = new Uint8Array(value.buffer);
  const answer = getsockopt.call?.(fd, SOL_SOCKET, name, bytes, new Uint8Array(length.buffer));
  return answer === 0 && length[0] === size ? value : undefined;
}

/** Undefined where the system does not tell. */
export function peerCredentials(socket: Socket): PeerCredentials | undefined {
  // Node has no public way to a socket's descriptor.
  const fd = (socket as unknown as { _handle?: { fd?: number } })._handle?.fd;
  if (process.platform !== 'linux' || fd === undefined || fd < 0) return undefined;
  const [pid, uid, gid] = socketOption(fd, SO_PEERCRED, 12) ?? [];
  return pid === undefined || uid === undefined || gid === undefined ? undefined : { pid, uid, gid };
}

/** Which kind of socket a descriptor is; undefined where that cannot be told. */
export function socketFamily(fd: number): 'unix' | 'tcp' | undefined {
  const family = socketOption(fd, SO_DOMAIN, 4)?.[0];
  return family === 1 ? 'unix' : family === 2 || family === 10 ? 'tcp' : undefined;
}
