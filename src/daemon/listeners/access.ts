/** Who may come in over TCP: Host and Origin against pages from elsewhere, bearer tokens against everybody else. */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { covers, type Role } from '../../protocol/roles.js';
import { isLoopback, type Token } from '../config-values.js';

/** What may change while the daemon runs: read anew for each request. */
export interface AccessRules {
  readonly tokens: readonly Token[];
  readonly allowOrigins: readonly string[];
  readonly allowHosts: readonly string[];
}

export type Refusal = {
  readonly status: 401 | 403;
  readonly reason: 'host' | 'origin' | 'token';
  readonly text: string;
};

/** How a browser, which cannot set headers on a WebSocket, shows its token: `Sec-WebSocket-Protocol: imgd, bearer.<base64url>`. */
const TOKEN_PROTOCOL = 'bearer.';

/** Names a refusal, or undefined where neither Host nor Origin speak against the request. */
export function checkOrigin(request: IncomingMessage, rules: AccessRules): Refusal | undefined {
  const { host = '', origin } = request.headers;
  if (!hostAllowed(host, request, rules)) {
    return { status: 403, reason: 'host', text: 'this Host is not allowed (see --allow-host)' };
  }
  const own = `${isTls(request) ? 'https' : 'http'}://${host}`;
  if (origin !== undefined && origin !== own && !rules.allowOrigins.includes(origin)) {
    return {
      status: 403,
      reason: 'origin',
      text: 'pages from this origin are not allowed (see --allow-origin)',
    };
  }
  return undefined;
}

/** The role of the token that the request shows, or a refusal. */
export function checkToken(request: IncomingMessage, rules: AccessRules): Role | Refusal {
  const token = tokenOf(request);
  let role: Role | undefined;
  if (token !== undefined) {
    const shown = hash(token);
    // All are compared, however early one fits. One that is there twice has the greater of its roles.
    for (const each of rules.tokens) {
      const fits = timingSafeEqual(hash(each.token), shown);
      if (fits && (role === undefined || covers(each.role, role))) role = each.role;
    }
  }
  if (role !== undefined) return role;
  const text = token === undefined ? 'a bearer token is needed' : 'this token is not known';
  return { status: 401, reason: 'token', text };
}

function isTls(request: IncomingMessage): boolean {
  return (request.socket as Partial<TLSSocket>).encrypted === true;
}

/**
 * A name that an attacker's DNS points at this machine is not one of these: an address is what the client connected to, and
 * names are those that the administrator lists.
 */
function hostAllowed(host: string, request: IncomingMessage, { allowHosts }: AccessRules): boolean {
  const match = /^(\[[0-9a-f:.]+\]|[^:[\]\s/@]+)(?::(\d{1,5}))?$/i.exec(host);
  if (!match) return false;
  const whole = host.toLowerCase();
  if (whole.includes(':') && allowHosts.includes(whole)) return true;
  const name = match[1]!.toLowerCase();
  const { localAddress = '', localPort } = request.socket;
  if (Number(match[2] ?? (isTls(request) ? 443 : 80)) !== localPort) return false;
  if (allowHosts.includes(name)) return true;
  const address = name.replace(/^\[|\]$/g, '');
  if (isLoopback(localAddress)) return isLoopback(address);
  return address === localAddress.replace(/^::ffff:/, '');
}

function tokenOf(request: IncomingMessage): string | undefined {
  const bearer = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? '')?.[1];
  if (bearer !== undefined) return bearer;
  // Clients that take nothing but an address: `ws://any:TOKEN@host/`.
  const basic = /^Basic +(\S+)$/i.exec(request.headers.authorization ?? '')?.[1];
  if (basic !== undefined)
    return Buffer.from(basic, 'base64')
      .toString('latin1')
      .replace(/^[^:]*:/, '');
  for (const offered of (request.headers['sec-websocket-protocol'] ?? '').split(',')) {
    const name = offered.trim();
    if (name.startsWith(TOKEN_PROTOCOL)) {
      return Buffer.from(name.slice(TOKEN_PROTOCOL.length), 'base64url').toString('latin1');
    }
  }
  return undefined;
}

/** Hashes are all of one length, as the comparison in constant time needs. */
function hash(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}
