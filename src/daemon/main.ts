#!/usr/bin/env node
const [, , word, ...rest] = process.argv;
// A word that is no flag is a command for a daemon that runs; each of the two programs loads the other's code in vain.
if (word !== undefined && !word.startsWith('-')) {
  const { isShellCommand, shell } = await import('./shell/main.js');
  if (isShellCommand(word)) process.exitCode = await shell(word, rest);
  else {
    process.stderr.write(`imgd: there is no command '${word}'\nTry 'imgd --help'.\n`);
    process.exitCode = 2;
  }
} else {
  const { main } = await import('./daemon.js');
  await main(process.argv.slice(2), new URL('../engine/index.js', import.meta.url).href);
}

export {};
