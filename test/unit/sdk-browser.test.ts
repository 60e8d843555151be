/** What a browser loads of the SDK: nothing of Node, and it runs with a browser's globals alone. */
import { readFileSync } from 'node:fs';
import { dirname, relative, resolve } from 'node:path';
import { runInNewContext } from 'node:vm';
import { rolldown } from 'rolldown';
import { describe, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '../..');
const entry = resolve(root, 'clients/sdk/browser.ts');

/** All files and packages that are reachable, but by types alone. */
function reachable(file: string, found = new Set<string>()): Set<string> {
  if (found.has(file)) return found;
  found.add(file);
  const text = readFileSync(file, 'utf8');
  const imports = [
    ...text.matchAll(/^(?:import|export)\s(?!type\s)[^;'"]*?from\s+'([^']+)'/gms),
    ...text.matchAll(/^import\s+'([^']+)'/gm),
    ...text.matchAll(/\bimport\(\s*'([^']+)'/g),
  ];
  for (const [, name] of imports) {
    if (name!.startsWith('.')) reachable(resolve(dirname(file), name!.replace(/\.js$/, '.ts')), found);
    else found.add(name!);
  }
  return found;
}

describe("the SDK's browser entry", () => {
  it('imports the protocol and valibot, and nothing else', () => {
    const outside = [...reachable(entry)]
      .map((name) => (name.startsWith(root) ? relative(root, name) : name))
      .filter((name) => !/^(clients\/sdk|src\/protocol)\//.test(name));
    expect(outside).toEqual(['valibot']);
  });

  it('is what the Node entry is made of, too, which adds sockets', () => {
    const node = reachable(resolve(root, 'clients/sdk/index.ts'));
    const outside = [...node]
      .map((name) => (name.startsWith(root) ? relative(root, name) : name))
      .filter((name) => !/^(clients\/sdk|src\/protocol)\//.test(name));
    expect(outside.sort()).toEqual(['node:net', 'valibot', 'ws']);
  });

  it('runs where there is nothing of Node', async () => {
    const bundle = await rolldown({ input: entry, platform: 'browser', logLevel: 'silent' });
    const { output } = await bundle.generate({ format: 'iife', name: 'imgd' });
    await bundle.close();
    const sent: { id: number; method: string; params: object }[] = [];
    class FakeSocket {
      onopen: () => void = () => undefined;
      onmessage: (event: { data: string }) => void = () => undefined;
      constructor(
        readonly url: string,
        readonly protocols: string[],
      ) {
        queueMicrotask(() => this.onopen());
      }
      send(text: string): void {
        const call = JSON.parse(text) as (typeof sent)[number];
        sent.push(call);
        const result = { version: '9.9.9', protocols: this.protocols };
        queueMicrotask(() =>
          this.onmessage({ data: JSON.stringify({ jsonrpc: '2.0', id: call.id, result }) }),
        );
      }
      close(): void {}
    }
    const { crypto, btoa, setTimeout, clearTimeout, URL, TextEncoder } = globalThis;
    const page = { WebSocket: FakeSocket, crypto, btoa, setTimeout, clearTimeout, URL, TextEncoder };
    const version: unknown = await runInNewContext(
      `${output[0].code}; imgd.connect({ url: 'ws://127.0.0.1:1', token: 'secret/token+1' })
        .then(async (client) => [client.version, await client.imageInfo({ image: { filename: 'x' } })])`,
      page,
    );
    expect(version).toEqual(['9.9.9', expect.anything()]);
    expect((version as [string, { protocols: string[] }])[1].protocols).toEqual([
      'imgd',
      `bearer.${Buffer.from('secret/token+1').toString('base64url')}`,
    ]);
    expect(sent.map(({ method }) => method)).toEqual(['query-version', 'image-info']);
  });
});
