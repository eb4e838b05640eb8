// Draws points as discs into the pixels of a canvas: a hundred thousand take some milliseconds, without a GPU.
import type { Points } from "./points";

export type View = { scale: number; left: number; top: number }; // pixels of the screen: place * scale + left or top
export type Look = { ground: number; colors: Uint32Array; dimmed: number };
export type Frame = { width: number; height: number; ratio: number; zoom: number };

type Disc = { reach: number; dx: Int32Array; dy: Int32Array; cover: Uint16Array };
const discs = new Map<number, Disc>();

/** Return the pixels of a disc and how much of each it covers, of 256. */
function disc(radius: number): Disc {
  const key = Math.round(radius * 4);
  const known = discs.get(key);
  if (known) return known;
  const reach = Math.ceil(radius);
  const found: [number, number, number][] = [];
  for (let y = -reach; y <= reach; y++)
    for (let x = -reach; x <= reach; x++) {
      const cover = Math.round(256 * Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(x, y))));
      if (cover) found.push([x, y, cover]);
    }
  const made = { reach, dx: Int32Array.from(found, (one) => one[0]), dy: Int32Array.from(found, (one) => one[1]), cover: Uint16Array.from(found, (one) => one[2]) };
  discs.set(key, made);
  return made;
}

export class Painter {
  private image: ImageData | null = null;
  private pixels = new Uint32Array();

  constructor(private readonly context: CanvasRenderingContext2D, private readonly points: Points) {}

  paint(frame: Frame, view: View, look: Look, lit: Uint8Array | null): void {
    const { width, height, ratio, zoom } = frame;
    if (this.image?.width !== width || this.image.height !== height) {
      this.image = this.context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    this.pixels.fill(0xff000000 | look.ground);
    const crowd = Math.min(1.6, Math.max(0.7, 60 / Math.sqrt(this.points.count)));
    const radius = Math.min(7, 1.5 * crowd * (1 + 0.35 * Math.log2(Math.max(1, zoom)))) * ratio;
    if (lit === null) this.layer(frame, view, look, radius, 200, null, 0);
    else {
      this.layer(frame, view, look, radius * 0.8, 90, lit, 0);
      this.layer(frame, view, look, Math.max(radius * 1.3, 2.5 * ratio), 256, lit, 1);
    }
    this.context.putImageData(this.image, 0, 0);
  }

  private layer(frame: Frame, view: View, look: Look, radius: number, strength: number, lit: Uint8Array | null, wanted: number): void {
    const { reach, dx, dy, cover } = disc(radius);
    const { width, height, ratio } = frame;
    const { x, y, codes, count } = this.points;
    const pixels = this.pixels;
    const [scale, left, top] = [view.scale * ratio, view.left * ratio, view.top * ratio];
    for (let i = 0; i < count; i++) {
      if (lit !== null && lit[i] !== wanted) continue;
      const cx = Math.round(x[i]! * scale + left);
      const cy = Math.round(y[i]! * scale + top);
      if (cx < reach || cy < reach || cx >= width - reach || cy >= height - reach) continue;
      const color = lit !== null && !wanted ? look.dimmed : look.colors[codes === null ? 0 : codes[i]!]!;
      const [r, g, b] = [color & 255, (color >> 8) & 255, (color >> 16) & 255];
      const center = cy * width + cx;
      for (let k = 0; k < cover.length; k++) {
        const at = center + dy[k]! * width + dx[k]!;
        const share = (cover[k]! * strength) >> 8;
        const old = pixels[at]!;
        const red = (old & 255) + (((r - (old & 255)) * share) >> 8);
        const green = ((old >> 8) & 255) + (((g - ((old >> 8) & 255)) * share) >> 8);
        const blue = ((old >> 16) & 255) + (((b - ((old >> 16) & 255)) * share) >> 8);
        pixels[at] = 0xff000000 | (blue << 16) | (green << 8) | red;
      }
    }
  }
}

/** Choose the thumbnails that are in view and do not overlap; first those that represent the most points. */
export function placeTiles(points: Points, frame: Frame, view: View, side: number, lit: Uint8Array | null): [number, number, number][] {
  const [width, height] = [frame.width / frame.ratio, frame.height / frame.ratio];
  const taken = new Map<string, [number, number][]>();
  const placed: [number, number, number][] = [];
  for (let tile = 0; tile < points.tiles.length; tile++) {
    const point = points.tiles[tile]!;
    if (lit !== null && !lit[point]) continue;
    const x = points.x[point]! * view.scale + view.left;
    const y = points.y[point]! * view.scale + view.top;
    if (x < -side || y < -side || x > width + side || y > height + side) continue;
    const [column, row] = [Math.floor(x / side), Math.floor(y / side)];
    let isFree = true;
    for (let a = column - 1; a <= column + 1 && isFree; a++)
      for (let b = row - 1; b <= row + 1 && isFree; b++)
        isFree = !taken.get(`${a},${b}`)?.some(([u, v]) => Math.abs(u - x) < side && Math.abs(v - y) < side);
    if (!isFree) continue;
    const key = `${column},${row}`;
    taken.set(key, [...(taken.get(key) ?? []), [x, y]]);
    placed.push([tile, x, y]);
  }
  return placed;
}
