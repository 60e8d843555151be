/** Which storage devices the images of a job are on, as far as their names tell. */
import { stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';

/** A file system that does not answer is a device of its own. */
const PATIENCE_MS = 2000;
const SILENT = -1;

/** Numbers of the devices, each once. Names with a protocol and held nodes are not looked at. */
export async function devicesOf(params: unknown, cwd: string): Promise<number[]> {
  const paths = new Set<string>();
  collect(params, cwd, paths);
  return [...new Set(await Promise.all([...paths].slice(0, 64).map(deviceOf)))].filter((each) => each !== 0);
}

function collect(value: unknown, cwd: string, into: Set<string>): void {
  if (Array.isArray(value)) for (const each of value) collect(each, cwd, into);
  else if (typeof value === 'object' && value !== null) {
    for (const [name, inner] of Object.entries(value)) {
      if (name === 'objects' || name === 'options') continue;
      if (name !== 'filename') collect(inner, cwd, into);
      else if (typeof inner === 'string' && inner !== '' && !/^[a-z][a-z0-9+.-]*:/.test(inner)) {
        into.add(resolve(cwd, inner));
      }
    }
  }
}

async function deviceOf(path: string): Promise<number> {
  let timer: NodeJS.Timeout | undefined;
  const silent = new Promise<number>((answer) => {
    timer = setTimeout(() => answer(SILENT), PATIENCE_MS);
  });
  const told = stat(path)
    // What is yet to be made is where its folder is.
    .catch(() => stat(dirname(path)))
    .then((found) => (found.isBlockDevice() ? found.rdev : found.dev))
    .catch(() => 0);
  try {
    return await Promise.race([told, silent]);
  } finally {
    clearTimeout(timer);
  }
}
