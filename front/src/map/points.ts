// The points of a map: their places and names, and which of them are near, inside a line or found.

export type Legend = { column: string; missing: number; names?: string[]; counts?: number[]; low?: number; high?: number };
export type Page = {
  title: string; version: string; layout: string; rows: number;
  places: string; ids: string | null; color: Legend | null; codes: string | null;
  tileSide: number; tileColumns: number; tiles: string; sheets: string[]; captions: string[];
};
export type Spot = { x: number; y: number }; // 0 to 1 on the map

const CELLS = 256; // on a side of the grid that finds near points

function bytes(base64: string): ArrayBuffer {
  const text = atob(base64);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out.buffer;
}

export class Points {
  readonly count: number;
  readonly x: Float32Array;
  readonly y: Float32Array;
  readonly codes: Uint8Array | null;
  readonly tiles: Uint32Array; // the point of each thumbnail
  readonly tileOf: Int32Array; // the thumbnail of each point, -1 for none
  readonly captions: string[];
  readonly page: Page;
  private readonly ids: Uint32Array | null;
  private readonly starts: Uint32Array;
  private readonly sorted: Uint32Array;
  private lower: string[] | null = null;

  constructor(page: Page) {
    const places = new Uint16Array(bytes(page.places));
    this.page = page;
    this.count = places.length / 2;
    this.x = new Float32Array(this.count);
    this.y = new Float32Array(this.count);
    for (let i = 0; i < this.count; i++) {
      this.x[i] = places[2 * i]! / 65535;
      this.y[i] = 1 - places[2 * i + 1]! / 65535;
    }
    this.ids = page.ids === null ? null : new Uint32Array(bytes(page.ids));
    this.codes = page.codes === null ? null : new Uint8Array(bytes(page.codes));
    this.tiles = new Uint32Array(bytes(page.tiles));
    this.tileOf = new Int32Array(this.count).fill(-1);
    this.tiles.forEach((point, tile) => (this.tileOf[point] = tile));
    this.captions = page.captions;
    [this.starts, this.sorted] = this.sortIntoCells();
  }

  id(point: number): number {
    return this.ids === null ? point : this.ids[point]!;
  }

  private cell(point: number): number {
    const at = (value: number) => Math.min(CELLS - 1, Math.floor(value * CELLS));
    return at(this.y[point]!) * CELLS + at(this.x[point]!);
  }

  private sortIntoCells(): [Uint32Array, Uint32Array] {
    const starts = new Uint32Array(CELLS * CELLS + 1);
    for (let i = 0; i < this.count; i++) starts[this.cell(i) + 1]!++;
    for (let i = 1; i < starts.length; i++) starts[i]! += starts[i - 1]!;
    const next = starts.slice();
    const sorted = new Uint32Array(this.count);
    for (let i = 0; i < this.count; i++) sorted[next[this.cell(i)]!++] = i;
    return [starts, sorted];
  }

  /** Return the point next to a place, at most `radius` away; -1 for none. */
  nearest(spot: Spot, radius: number): number {
    let best = -1;
    let least = radius * radius;
    const bound = (value: number) => Math.min(CELLS - 1, Math.max(0, Math.floor(value * CELLS)));
    for (let row = bound(spot.y - radius); row <= bound(spot.y + radius); row++) {
      const [from, to] = [row * CELLS + bound(spot.x - radius), row * CELLS + bound(spot.x + radius)];
      for (let at = this.starts[from]!; at < this.starts[to + 1]!; at++) {
        const point = this.sorted[at]!;
        const distance = (this.x[point]! - spot.x) ** 2 + (this.y[point]! - spot.y) ** 2;
        if (distance <= least) [best, least] = [point, distance];
      }
    }
    return best;
  }

  /** Return the points inside a closed line. */
  inside(line: Spot[]): number[] {
    if (line.length < 3) return [];
    const [low, high] = [Math.min(...line.map((spot) => spot.x)), Math.max(...line.map((spot) => spot.x))];
    const found: number[] = [];
    for (let i = 0; i < this.count; i++) {
      const [x, y] = [this.x[i]!, this.y[i]!];
      if (x < low || x > high) continue;
      let isInside = false;
      for (let a = 0, b = line.length - 1; a < line.length; b = a++) {
        const [p, q] = [line[a]!, line[b]!];
        if (p.y > y !== q.y > y && x < ((q.x - p.x) * (y - p.y)) / (q.y - p.y) + p.x) isInside = !isInside;
      }
      if (isInside) found.push(i);
    }
    return found;
  }

  /** Mark the points whose caption has every word and whose color is wanted; null if there is no filter. */
  find(text: string, codes: ReadonlySet<number>): { lit: Uint8Array; count: number } | null {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length && !codes.size) return null;
    this.lower ??= this.captions.map((caption) => caption.toLowerCase());
    const lit = new Uint8Array(this.count);
    let count = 0;
    for (let i = 0; i < this.count; i++) {
      if (codes.size && !codes.has(this.codes![i]!)) continue;
      if (!words.every((word) => this.lower![i]!.includes(word))) continue;
      lit[i] = 1;
      count++;
    }
    return { lit, count };
  }
}
