#!/usr/bin/env node
/** The program `qemu-img`. */
import { exitNow } from '../../src/engine/storage/host/exit.js';
import { run } from './cli.js';

// All output is written by now: nothing that is still open keeps the program.
void run(process.argv.slice(2)).then(exitNow);
