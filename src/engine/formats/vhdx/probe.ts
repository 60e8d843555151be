/** 100 for the file type identifier's signature. */
export function probe(head: Uint8Array, _filename: string, fileSize: number): number {
  if (fileSize < SIGNATURE.length) return 0;
  for (let at = 0; at < SIGNATURE.length; at++) if (head[at] !== SIGNATURE.charCodeAt(at)) return 0;
  return 100;
}

const SIGNATURE = 'vhdxfile';
