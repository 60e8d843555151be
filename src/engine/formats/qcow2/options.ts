/** qcow2's options: for creating, in the order in which the reference's `Formatting` line shows them, and for opening. */
import type { OptionDeclaration } from '../../node/option-table.js';

export const DEFAULT_CLUSTER_SIZE = 65536;
export const DEFAULT_REFCOUNT_BITS = 16;

export const createOptions: readonly OptionDeclaration[] = [
  {
    name: 'encryption',
    type: 'bool',
    help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  { name: 'encrypt.format', type: 'string', help: "Encrypt the image, format choices: 'aes', 'luks'" },
  {
    name: 'encrypt.key-secret',
    type: 'string',
    help: 'ID of secret providing qcow AES key or LUKS passphrase',
  },
  { name: 'encrypt.cipher-alg', type: 'string', help: 'Name of encryption cipher algorithm' },
  { name: 'encrypt.cipher-mode', type: 'string', help: 'Name of encryption cipher mode' },
  { name: 'encrypt.ivgen-alg', type: 'string', help: 'Name of IV generator algorithm' },
  { name: 'encrypt.ivgen-hash-alg', type: 'string', help: 'Name of IV generator hash algorithm' },
  { name: 'encrypt.hash-alg', type: 'string', help: 'Name of encryption hash algorithm' },
  { name: 'encrypt.iter-time', type: 'number', help: 'Time to spend in PBKDF in milliseconds' },
  { name: 'cluster_size', type: 'size', help: 'qcow2 cluster size', default: DEFAULT_CLUSTER_SIZE },
  { name: 'extended_l2', type: 'bool', help: 'Extended L2 tables', default: false },
  {
    name: 'preallocation',
    type: 'string',
    help: 'Preallocation mode (allowed values: off, metadata, falloc, full)',
  },
  {
    name: 'compression_type',
    type: 'string',
    help: 'Compression method used for image cluster compression',
    default: 'zlib',
  },
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  { name: 'compat', type: 'string', help: 'Compatibility level (v2 [0.10] or v3 [1.1])' },
  { name: 'backing_file', type: 'string', help: 'File name of a base image' },
  { name: 'backing_fmt', type: 'string', help: 'Image format of the base image' },
  { name: 'data_file', type: 'string', help: 'File name of an external data file' },
  {
    name: 'data_file_raw',
    type: 'bool',
    help: 'The external data file must stay valid as a raw image',
  },
  { name: 'lazy_refcounts', type: 'bool', help: 'Postpone refcount updates', default: false },
  {
    name: 'refcount_bits',
    type: 'number',
    help: 'Width of a reference count entry in bits',
    default: DEFAULT_REFCOUNT_BITS,
  },
];

/** QEMU's runtime options. Most are accepted only so that its command lines work; the two cache sizes are minded. */
export const openOptions: readonly OptionDeclaration[] = [
  { name: 'lazy-refcounts', type: 'bool', help: 'Postpone refcount updates' },
  { name: 'pass-discard-request', type: 'bool', help: 'Pass guest discard requests to the layer below' },
  {
    name: 'pass-discard-snapshot',
    type: 'bool',
    help: 'Generate discard requests when snapshots are deleted',
  },
  {
    name: 'pass-discard-other',
    type: 'bool',
    help: 'Generate discard requests when other clusters are freed',
  },
  { name: 'discard-no-unref', type: 'bool', help: 'Do not unreference discarded clusters' },
  { name: 'overlap-check', type: 'string', help: 'Selects which overlap checks to perform' },
  { name: 'overlap-check.template', type: 'string', help: 'Selects which overlap checks to perform' },
  { name: 'cache-size', type: 'size', help: 'Maximum combined metadata cache size' },
  { name: 'l2-cache-size', type: 'size', help: 'Maximum L2 table cache size' },
  { name: 'l2-cache-entry-size', type: 'size', help: 'Size of each entry in the L2 cache' },
  { name: 'refcount-cache-size', type: 'size', help: 'Maximum refcount block cache size' },
  {
    name: 'cache-clean-interval',
    type: 'number',
    help: 'Clean unused cache entries after this time (in seconds)',
  },
];
