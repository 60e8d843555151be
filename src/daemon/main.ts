#!/usr/bin/env node
import { main } from './daemon.js';

await main(process.argv.slice(2), new URL('../engine/index.js', import.meta.url).href);
