/** What systemd and services that it starts say to each other: sockets that are handed over, and how the service is. */
import { libcFunction } from './libc.js';
import { socketFamily } from './listeners/peer.js';

type Environment = Record<string, string | undefined>;

/** Descriptors of sockets that listen already, see sd_listen_fds(3). */
export interface HandedOver {
  readonly unix: number | undefined;
  readonly tcp: number | undefined;
}

const FIRST_FD = 3;

/** Takes the variables out of the environment, so that no child takes them for its own. Throws where the sockets make no sense. */
export function takeSockets(env: Environment = process.env, pid = process.pid): HandedOver {
  const { LISTEN_PID: forPid, LISTEN_FDS: count = '0' } = env;
  delete env.LISTEN_PID;
  delete env.LISTEN_FDS;
  delete env.LISTEN_FDNAMES;
  const taken: { unix: number | undefined; tcp: number | undefined } = { unix: undefined, tcp: undefined };
  if (Number(forPid) !== pid) return taken;
  for (let fd = FIRST_FD; fd < FIRST_FD + Number(count); fd++) {
    const family = socketFamily(fd);
    if (family === undefined) throw new Error(`descriptor ${fd} from LISTEN_FDS is no Unix or TCP socket`);
    if (taken[family] !== undefined) throw new Error(`LISTEN_FDS has more than one ${family} socket`);
    taken[family] = fd;
  }
  return taken;
}

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
/** sun_path. */
const MAX_PATH = 108;

/** Tells the service manager (sd_notify(3)): `READY=1`. Nothing happens where there is none; true where it was told. */
export function notify(text: string, env: Environment = process.env): boolean {
  const to = env.NOTIFY_SOCKET;
  if (!to || !/^[/@]/.test(to)) return false;
  const name = Buffer.from(to);
  if (name.length >= MAX_PATH) return false;
  // An abstract name begins with a null byte.
  if (name[0] === 0x40) name[0] = 0;
  const address = Buffer.alloc(2 + name.length + (name[0] === 0 ? 0 : 1));
  new Uint16Array(address.buffer, address.byteOffset, 1)[0] = AF_UNIX;
  name.copy(address, 2);
  const socket = libcFunction<(family: number, type: number, protocol: number) => number>(
    'int socket(int family, int type, int protocol)',
  );
  const sendTo = libcFunction<never>(
    'int64_t sendto(int fd, void *data, size_t length, int flags, void *address, uint32_t size)',
  ) as
    | ((fd: number, data: Uint8Array, length: number, flags: number, to: Uint8Array, size: number) => number)
    | undefined;
  const close = libcFunction<(fd: number) => number>('int close(int fd)');
  if (socket === undefined || sendTo === undefined || close === undefined) return false;
  const fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const data = Buffer.from(text);
  const sent = sendTo(fd, data, data.length, 0, address, address.length);
  close(fd);
  return sent === data.length;
}

/** Tells the service manager that this thread still turns, twice as often as it wants to hear it. */
export function watchdog(env: Environment = process.env, pid = process.pid): void {
  const { WATCHDOG_USEC: period, WATCHDOG_PID: forPid } = env;
  const ms = Number(period) / 2000;
  if (!(ms >= 1) || (forPid !== undefined && Number(forPid) !== pid)) return;
  setInterval(() => notify('WATCHDOG=1', env), ms).unref();
}
