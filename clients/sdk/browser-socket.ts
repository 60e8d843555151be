/** The browser's WebSocket. */
import { ImgdError } from './errors.js';
import type { Dial } from './wire.js';

/** What is used of it. */
interface BrowserSocket {
  onopen: ((event: unknown) => void) | null;
  onmessage: ((event: { readonly data: unknown }) => void) | null;
  onerror: ((event: unknown) => void) | null;
  onclose: ((event: { readonly code: number; readonly reason: string }) => void) | null;
  send(text: string): void;
  close(): void;
}
export type BrowserSocketClass = new (url: string, protocols?: string[]) => BrowserSocket;

/** A browser lets no page set headers on a WebSocket: the token goes where the daemon looks for it too. */
export function bearerProtocols(token: string | undefined): string[] {
  if (token === undefined) return ['imgd'];
  const base64 = btoa(token).replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '');
  return ['imgd', `bearer.${base64}`];
}

export function browserDial(url: string, token: string | undefined, given?: BrowserSocketClass): Dial {
  return (events) =>
    new Promise((resolve, reject) => {
      const { WebSocket } = globalThis as { WebSocket?: BrowserSocketClass };
      const Socket = given ?? WebSocket;
      if (Socket === undefined) {
        reject(new ImgdError('connection-failed', 'there is no WebSocket here'));
        return;
      }
      const socket = new Socket(url, bearerProtocols(token));
      let open = false;
      socket.onopen = () => {
        open = true;
        resolve({ send: (text) => socket.send(text), close: () => socket.close() });
      };
      socket.onmessage = ({ data }) => {
        if (typeof data === 'string') events.message(data);
      };
      // A close follows.
      socket.onerror = () => undefined;
      socket.onclose = ({ code }) => {
        if (open) events.closed();
        // Why, a browser does not tell a page: nobody there, a wrong token, an origin that is not allowed.
        else reject(new ImgdError('connection-failed', `cannot connect to ${url} (WebSocket code ${code})`));
      };
    });
}
