import { expect, test } from "vitest";
import { type Hit, type Row, chooseFacets, inOrder, matches, nameOf, orderColumns, searchable } from "../src/sheet/hits";

const hit = (rank: number, more: Partial<Row>): Hit => ({ row: { rank, id: rank, similarity: 1 / rank, ...more } as Row, thumbnail: null, problem: null, file: null });
const ranks = (hits: Hit[]) => hits.map((one) => one.row.rank);

test("columns of few values that repeat are facets, labels first, shards by their last part", () => {
  const hits = Array.from({ length: 12 }, (_, i) => hit(i + 1, { caption: `c${i}`, shard: `/x/${i % 2}.tar`, labels: [["a", "b"][i % 2]!, "c"], score: i / 7 }));
  expect(chooseFacets(hits)).toEqual([
    { column: "labels", values: [["c", 12], ["a", 6], ["b", 6]] },
    { column: "shard", values: [["0.tar", 6], ["1.tar", 6]] },
  ]);
});

test("a column of numbers sorts as numbers, and hits without a value come last either way", () => {
  const hits = [hit(1, { size: 10 }), hit(2, { size: null }), hit(3, { size: 9 })];
  expect(ranks(inOrder(hits, "size", false))).toEqual([3, 1, 2]);
  expect(ranks(inOrder(hits, "size", true))).toEqual([1, 3, 2]);
  expect(orderColumns(hits)).toEqual(["id", "size"]);
});

test("a hit matches by all words and one value of each facet that is chosen", () => {
  const one = hit(1, { caption: "A black Dog", label: "pet" });
  const text = searchable(one);
  expect(matches(one, text, ["dog", "black"], { label: ["pet", "wild"] })).toBe(true);
  expect(matches(one, text, ["dog", "white"], {})).toBe(false);
  expect(matches(one, text, [], { label: ["wild"] })).toBe(false);
});

test("frames are called by their video and moment, and the video is the facet, not the place in it", () => {
  const hits = Array.from({ length: 6 }, (_, i) => hit(i + 1, { image_path: `/x/${i % 2}.mp4#t=${i % 3}`, video: `/x/${i % 2}.mp4`, time_seconds: i % 3, frame: i % 3, page: i % 3 }));
  expect(hits.slice(0, 2).map(nameOf)).toEqual(["0:00 · 0.mp4", "0:01 · 1.mp4"]);
  expect(chooseFacets(hits)).toEqual([{ column: "video", values: [["0.mp4", 3], ["1.mp4", 3]] }]);
});
