/** imgd's version: package.json's, which a test compares. */
export const VERSION = '0.1.0';

/** The version of qemu-img whose command line this one keeps to. */
export const REFERENCE = '10.0.2';

export const versionText = `qemu-img version ${REFERENCE} (imgd ${VERSION})\nCopyright (c) The imgd contributors\n`;
