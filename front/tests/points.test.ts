import { expect, test } from "vitest";
import { type Page, Points } from "../src/map/points";

const base64 = (numbers: Uint8Array | Uint16Array | Uint32Array) => btoa(String.fromCharCode(...new Uint8Array(numbers.buffer)));
const page: Page = {
  title: "", version: "", layout: "pca", rows: 9, color: null, tileSide: 64, tileColumns: 32, sheets: [],
  places: base64(new Uint16Array([0, 0, 65535, 65535, 32768, 32768])), ids: base64(new Uint32Array([2, 5, 8])),
  codes: base64(new Uint8Array([0, 1, 1])), tiles: base64(new Uint32Array([2])), captions: ["a cat", "a dog", "Cat and dog"],
};
const points = new Points(page);

test("places, ids and thumbnails are those that Python wrote; up is up", () => {
  expect([points.x[1], points.y[1], points.y[0]]).toEqual([1, 0, 1]);
  expect([points.id(0), points.id(2)]).toEqual([2, 8]);
  expect([...points.tileOf]).toEqual([-1, -1, 0]);
});

test("the nearest point is found within its reach alone", () => {
  expect(points.nearest({ x: 0.49, y: 0.52 }, 0.1)).toBe(2);
  expect(points.nearest({ x: 1.2, y: -0.1 }, 0.3)).toBe(1);
  expect(points.nearest({ x: 0.25, y: 0.25 }, 0.1)).toBe(-1);
});

test("a line holds what lies inside of it", () => {
  expect(points.inside([{ x: 0.4, y: 0.4 }, { x: 0.6, y: 0.4 }, { x: 0.5, y: 0.7 }])).toEqual([2]);
  expect(points.inside([{ x: 0, y: 0 }])).toEqual([]);
});

test("captions are found by all words, among the colors that are chosen", () => {
  expect(points.find(" ", new Set())).toBeNull();
  expect(points.find("CAT", new Set())?.count).toBe(2);
  expect([...points.find("cat", new Set([1]))!.lit]).toEqual([0, 0, 1]);
});
