/** The end of the program: Node's, or the engine's own where that runs here. */
let end: (code: number) => void = (code) => process.exit(code);

export function exitBy(way: (code: number) => void): void {
  end = way;
}

export function exit(code: number): void {
  end(code);
}
