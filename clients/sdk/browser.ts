/** `imgd/sdk/browser`: the SDK for web pages. Reaches nothing of Node. */
import { type BrowserSocketClass, browserDial } from './browser-socket.js';
import { type Client, type ClientOptions, connectBy } from './client.js';

export * from './exports.js';

export interface BrowserOptions extends ClientOptions {
  /** `ws://127.0.0.1:8040`, or `wss:` off loopback. */
  readonly url: string;
  /** A bearer token of the daemon's --token-file. */
  readonly token?: string;
  /** Another class than the page's own. */
  readonly WebSocket?: BrowserSocketClass;
}

/** Connects to a daemon. Rejects with an ImgdError of kind `connection-failed` where that is not possible. */
export function connect(options: BrowserOptions): Promise<Client> {
  return connectBy(browserDial(options.url, options.token, options.WebSocket), options);
}
