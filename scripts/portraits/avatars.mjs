// Reads DiceBear options, one JSON object a line, and writes the SVG of each, one a line, in the same order.
import { createInterface } from 'node:readline';
import { createAvatar } from '@dicebear/core';
import * as pixelArt from '@dicebear/pixel-art';

for await (const line of createInterface({ input: process.stdin })) {
  const svg = createAvatar(pixelArt, JSON.parse(line)).toString();
  const drawing = svg.replace(/<metadata.*<\/metadata>/s, '').replaceAll('\n', ' ');
  process.stdout.write(drawing + '\n');
}
