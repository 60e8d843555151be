/** Kept equal to package.json by a test: reading that file at every start would cost more than it is worth. */
export const VERSION = '0.1.0';

/** The release whose observable behaviour imgd follows. */
export const QEMU_VERSION = { major: 10, minor: 0, micro: 2 } as const;
