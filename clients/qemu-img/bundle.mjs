/**
 * Makes a few CommonJS files of the client's many modules, in place, after tsc: `node clients/qemu-img/bundle.mjs [DIST]`.
 * They hold a copy of the engine for embedded mode; the daemon's stays as tsc left it.
 *
 * Starting costs are why. Milliseconds beyond `node -e 0` on a 2-core machine: a command line that is read and refused as
 * tsc leaves it +15, as one ES module +9 (Node's ES loader alone is 5), as CommonJS +3; `info` in embedded mode +65
 * with the engine as ES modules, +30 with it as CommonJS; V8's code cache would save 10 of these on the very Node that made
 * it, and cost 10 on any other. Without this step all works as tsc left it, slower.
 */
import { readdir, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';

const folder = join(resolve(process.argv[2] ?? 'dist'), 'clients/qemu-img');
const { rolldown } = await import('rolldown');
const bundle = await rolldown({
  input: join(folder, 'main.js'),
  platform: 'node',
  // Packages stay where npm put them.
  external: /^[^./]/,
});
const { output } = await bundle.generate({
  format: 'cjs',
  entryFileNames: 'main.js',
  chunkFileNames: '[name].js',
});
await bundle.close();
for (const name of await readdir(folder)) await rm(join(folder, name), { recursive: true });
for (const file of output) await writeFile(join(folder, file.fileName), file.code, { mode: 0o755 });
await writeFile(join(folder, 'package.json'), '{ "type": "commonjs" }\n');
