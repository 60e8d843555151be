/** Host, Origin and token of requests over TCP. */
import type { IncomingMessage } from 'node:http';
import { describe, expect, it } from 'vitest';
import { checkOrigin, checkToken } from '../../src/daemon/listeners/access.js';

const rules = {
  tokens: [
    { token: 'watching-0123456', role: 'watch' },
    { token: 'admins-012345678', role: 'admin' },
    { token: 'twofold-01234567', role: 'operate' },
    { token: 'twofold-01234567', role: 'watch' },
  ],
  allowOrigins: ['https://panel.example'],
  allowHosts: ['imgd.example', 'proxied.example:8443', '[2001:db8::1]'],
} as const;

interface Given {
  readonly host?: string;
  readonly origin?: string;
  readonly authorization?: string;
  readonly protocol?: string;
  readonly local?: string;
  readonly port?: number;
  readonly tls?: boolean;
}
const request = (given: Given): IncomingMessage =>
  ({
    headers: {
      host: given.host,
      origin: given.origin,
      authorization: given.authorization,
      'sec-websocket-protocol': given.protocol,
    },
    socket: {
      localAddress: given.local ?? '127.0.0.1',
      localPort: given.port ?? 8040,
      encrypted: given.tls ?? false,
    },
  }) as unknown as IncomingMessage;

const reason = (given: Given): string | undefined => checkOrigin(request(given), rules)?.reason;

describe('Host', () => {
  it('is an address of this machine that the client has connected to, with the port', () => {
    for (const host of [
      '127.0.0.1:8040',
      '127.1.2.3:8040',
      'localhost:8040',
      'LOCALHOST:8040',
      '[::1]:8040',
    ]) {
      expect(reason({ host }), host).toBeUndefined();
    }
    expect(reason({ host: '[::1]:8040', local: '::1' })).toBeUndefined();
    expect(reason({ host: '10.1.2.3:8040', local: '10.1.2.3' })).toBeUndefined();
    expect(reason({ host: '10.1.2.3:8040', local: '::ffff:10.1.2.3' })).toBeUndefined();
    expect(reason({ host: '10.1.2.4:8040', local: '10.1.2.3' })).toBe('host');
    // From outside localhost is somebody else.
    expect(reason({ host: 'localhost:8040', local: '10.1.2.3' })).toBe('host');
    expect(reason({ host: '127.0.0.1', port: 80 })).toBeUndefined();
    expect(reason({ host: '127.0.0.1', port: 443, tls: true })).toBeUndefined();
    expect(reason({ host: '127.0.0.1', port: 443 })).toBe('host');
  });

  it('is a name that is allowed, whoever else says what it leads to', () => {
    for (const local of ['127.0.0.1', '10.1.2.3']) {
      expect(reason({ host: 'imgd.example:8040', local })).toBeUndefined();
      expect(reason({ host: 'IMGD.example:8040', local })).toBeUndefined();
      expect(reason({ host: 'imgd.example:80', local })).toBe('host');
      expect(reason({ host: 'evil.example:8040', local })).toBe('host');
      expect(reason({ host: 'imgd.example.evil.example:8040', local })).toBe('host');
      // With its port it may be another's that passes requests on.
      expect(reason({ host: 'proxied.example:8443', local })).toBeUndefined();
      expect(reason({ host: 'proxied.example:8040', local })).toBe('host');
      expect(reason({ host: '[2001:DB8::1]:8040', local })).toBeUndefined();
    }
    for (const host of [
      undefined,
      '',
      ':8040',
      'user@127.0.0.1:8040',
      '127.0.0.1:8040/x',
      '127.0.0.1:8040:1',
      ' ',
    ]) {
      expect(reason(host === undefined ? {} : { host }), host).toBe('host');
    }
  });
});

describe('Origin', () => {
  it('is this very server, or one that is allowed', () => {
    const host = '127.0.0.1:8040';
    expect(reason({ host, origin: 'http://127.0.0.1:8040' })).toBeUndefined();
    expect(reason({ host, origin: 'https://127.0.0.1:8040', tls: true })).toBeUndefined();
    expect(reason({ host, origin: 'https://panel.example' })).toBeUndefined();
    for (const origin of [
      'null',
      'http://localhost:8040',
      'https://127.0.0.1:8040',
      'https://panel.example.evil',
      '',
    ]) {
      expect(reason({ host, origin }), origin).toBe('origin');
    }
  });
});

describe('a token', () => {
  const role = (given: Given): unknown => {
    const found = checkToken(request(given), rules);
    return typeof found === 'string' ? found : found.text;
  };
  it('is shown in a header, or by a browser as a protocol', () => {
    expect(role({ authorization: 'Bearer watching-0123456' })).toBe('watch');
    expect(role({ authorization: 'bearer  admins-012345678' })).toBe('admin');
    const encoded = Buffer.from('admins-012345678').toString('base64url');
    expect(role({ protocol: `imgd, bearer.${encoded}` })).toBe('admin');
    // The header counts where both are there.
    expect(role({ authorization: 'Bearer watching-0123456', protocol: `bearer.${encoded}` })).toBe('watch');
    expect(role({ authorization: 'Bearer twofold-01234567' })).toBe('operate');
  });

  it('is the password in an address', () => {
    const basic = (text: string) => role({ authorization: `Basic ${Buffer.from(text).toString('base64')}` });
    expect(basic('any:watching-0123456')).toBe('watch');
    expect(basic(':watching-0123456')).toBe('watch');
    expect(basic('watching-0123456:x')).toBe('this token is not known');
  });

  it('is known or not', () => {
    expect(role({})).toBe('a bearer token is needed');
    expect(role({ authorization: 'Digest watching-0123456' })).toBe('a bearer token is needed');
    for (const token of ['watching-012345', 'watching-01234567', 'WATCHING-0123456', 'x']) {
      expect(role({ authorization: `Bearer ${token}` })).toBe('this token is not known');
    }
    expect(checkToken(request({ authorization: 'Bearer x' }), { ...rules, tokens: [] })).toMatchObject({
      status: 401,
    });
  });
});
