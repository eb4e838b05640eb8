// Colors of the points, as numbers 0xBBGGRR (the order of bytes in a canvas), for light and dark.
import type { Theme } from "../shared/page-data";
import type { Legend } from "./points";

const VALUES = {
  light: ["#0b6bcb", "#d9730d", "#1b8a4b", "#c22f4e", "#7a4fd0", "#0b93a5", "#a07400", "#d14b9c", "#5f7f1d", "#2f4bb0", "#9a5b3c", "#7d7a74"],
  dark: ["#6db3ff", "#ffa04d", "#5fd08c", "#ff7d92", "#b79aff", "#4fd0de", "#e6c04a", "#ff8fd0", "#b4d65a", "#8fa5ff", "#d9a283", "#a3a09a"],
};
const SCALE = { light: ["#3b2a80", "#23639f", "#16957f", "#5fb53c", "#e0a800"], dark: ["#7d6bd6", "#4f9be0", "#3fc4a5", "#9bd65c", "#ffe066"] };
const MISSING = { light: "#b5b0a7", dark: "#5c5c63" };
const ONE = { light: "#0b6bcb", dark: "#7fbaff" };

const channels = (hex: string) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const pack = ([r, g, b]: number[]) => r! | (g! << 8) | (b! << 16);

export function packColor(hex: string): number {
  return pack(channels(hex));
}

function mix(stops: string[], share: number): string {
  const at = share * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(at));
  const [a, b] = [channels(stops[low]!), channels(stops[low + 1]!)];
  return `#${a.map((value, i) => Math.round(value + (b[i]! - value) * (at - low)).toString(16).padStart(2, "0")).join("")}`;
}

/** Return the color of each code, 0 to 255. */
export function palette(legend: Legend | null, theme: Theme): string[] {
  return Array.from({ length: 256 }, (_, code) => {
    if (legend === null) return ONE[theme];
    if (code === 255) return MISSING[theme];
    return legend.names ? VALUES[theme][code % 12]! : mix(SCALE[theme], code / 254);
  });
}

export const scaleStops = (theme: Theme): string => SCALE[theme].join(", ");
