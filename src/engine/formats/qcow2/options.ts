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

const flag = (name: string, help: string): OptionDeclaration => ({ name, type: 'bool', help });

/** QEMU's runtime options; `readRuntime` says what is made of them. */
export const openOptions: readonly OptionDeclaration[] = [
  flag('lazy-refcounts', 'Postpone refcount updates'),
  flag('pass-discard-request', 'Pass guest discard requests to the layer below'),
  flag('pass-discard-snapshot', 'Generate discard requests when snapshot related space is freed'),
  flag('pass-discard-other', 'Generate discard requests when other clusters are freed'),
  flag('discard-no-unref', 'Do not unreference discarded clusters'),
  { name: 'overlap-check', type: 'string', help: 'Selects which overlap checks to perform' },
  { name: 'overlap-check.template', type: 'string', help: 'Selects which overlap checks to perform' },
  flag('overlap-check.main-header', 'Check for unintended writes into the main qcow2 header'),
  flag('overlap-check.active-l1', 'Check for unintended writes into the active L1 table'),
  flag('overlap-check.active-l2', 'Check for unintended writes into an active L2 table'),
  flag('overlap-check.refcount-table', 'Check for unintended writes into the refcount table'),
  flag('overlap-check.refcount-block', 'Check for unintended writes into a refcount block'),
  flag('overlap-check.snapshot-table', 'Check for unintended writes into the snapshot table'),
  flag('overlap-check.inactive-l1', 'Check for unintended writes into an inactive L1 table'),
  flag('overlap-check.inactive-l2', 'Check for unintended writes into an inactive L2 table'),
  flag('overlap-check.bitmap-directory', 'Check for unintended writes into the bitmap directory'),
  { name: 'cache-size', type: 'size', inexact: true, help: 'Maximum combined metadata cache size' },
  { name: 'l2-cache-size', type: 'size', inexact: true, help: 'Maximum L2 table cache size' },
  { name: 'l2-cache-entry-size', type: 'size', inexact: true, help: 'Size of each entry in the L2 cache' },
  { name: 'refcount-cache-size', type: 'size', inexact: true, help: 'Maximum refcount block cache size' },
  {
    name: 'cache-clean-interval',
    type: 'number',
    help: 'Clean unused cache entries after this time (in seconds)',
  },
  { name: 'encrypt.format', type: 'string', help: 'Encryption format that the image must have' },
  {
    name: 'encrypt.key-secret',
    type: 'string',
    help: 'ID of secret providing qcow2 AES key or LUKS passphrase',
  },
];
