#!/usr/bin/env node
/** The program `qemu-img`. */
import { run } from './cli.js';
import { exit } from './exit.js';

// All output is written by now: nothing that is still open keeps the program.
void run(process.argv.slice(2)).then(exit);
