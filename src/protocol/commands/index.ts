/** The one list of commands. */
import { imageCheck } from './image-check.js';
import { imageCompare } from './image-compare.js';
import { imageConvert } from './image-convert.js';
import { imageCreate } from './image-create.js';
import { imageInfo } from './image-info.js';
import { imageMap } from './image-map.js';

export const operations = {
  'image-create': imageCreate,
  'image-info': imageInfo,
  'image-convert': imageConvert,
  'image-check': imageCheck,
  'image-map': imageMap,
  'image-compare': imageCompare,
} as const;

export type OperationName = keyof typeof operations;
