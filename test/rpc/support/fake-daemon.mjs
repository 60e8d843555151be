// The daemon with a table of fake operations in place of the engine: node fake-daemon.mjs [FLAG]...
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const dist = resolve(process.env.IMGD_DIST ?? 'dist');
const { main } = await import(pathToFileURL(`${dist}/src/daemon/daemon.js`).href);
await main(process.argv.slice(2), new URL('./fake-engine.mjs', import.meta.url).href);
