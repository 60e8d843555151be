/** `imgd/sdk`: the SDK for Node. */
import { defaultSocketPath } from '../../src/protocol/endpoint.js';
import { type Client, type ClientOptions, connectBy } from './client.js';
import { ImgdError } from './errors.js';
import { unixDial, webSocketDial } from './node-socket.js';

export * from './exports.js';

export interface ConnectOptions extends ClientOptions {
  /** Path of the daemon's Unix socket. Where neither this nor `url` is given: the one that imgd and qemu-img meet at. */
  readonly socket?: string;
  /** `ws://127.0.0.1:8040`, or `wss:` off loopback. */
  readonly url?: string;
  /** A bearer token of the daemon's --token-file: for `url`. */
  readonly token?: string;
  /** PEM of the authority that signed the daemon's certificate: for `url`. */
  readonly ca?: string;
}

/**
 * Connects to a daemon. Rejects with an ImgdError: `connection-failed` where nobody answers, `forbidden` where the token is not
 * known, `too-many-connections`.
 */
export async function connect(options: ConnectOptions = {}): Promise<Client> {
  const { socket, url, token, ca } = options;
  if (url !== undefined) {
    if (socket !== undefined) throw new ImgdError('invalid', "'socket' and 'url' exclude each other");
    if (!/^wss?:\/\//.test(url) || !URL.canParse(url)) {
      throw new ImgdError('invalid', `'url' must begin with ws: or wss:, not '${url}'`);
    }
    return connectBy(webSocketDial(url, { token, ca }), options);
  }
  const path = socket ?? defaultSocketPath(process.env, process.getuid?.());
  if (path === undefined) {
    throw new ImgdError('connection-failed', 'XDG_RUNTIME_DIR is not set: say where the daemon listens');
  }
  return connectBy(unixDial(path), options);
}
