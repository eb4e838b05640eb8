import { strFromU8, unzipSync } from "fflate";
import { expect, test } from "vitest";
import type { Hit } from "../src/front/api/back";
import { Problem } from "../src/front/api/http";
import { asCsv, asIds, asJson } from "../src/front/download/rows";
import { zipPictures } from "../src/front/download/zip";

const hits: Hit[] = [
  { id: 5, similarity: 0.5, metadata: { caption: 'a "dog", \n barking', width: 3, tags: ["a", "b"] } },
  { id: 0, similarity: 0.25, metadata: { url: "http://a.b/c", id: "its own" }, surprise: 0.01 },
];

test("json holds everything, and the row's id before a column of that name", () => {
  expect(JSON.parse(asJson(hits))).toEqual([
    { caption: 'a "dog", \n barking', width: 3, tags: ["a", "b"], id: 5, similarity: 0.5 },
    { url: "http://a.b/c", id: 0, similarity: 0.25, surprise: 0.01 },
  ]);
  expect(JSON.parse(asJson([]))).toEqual([]);
});

test("csv has every column of any hit, and quotes what needs it", () => {
  expect(asCsv(hits).split("\r\n")).toEqual([
    "id,similarity,caption,width,tags,url,surprise",
    '5,0.5,"a ""dog"", \n barking",3,"[""a"",""b""]",,',
    "0,0.25,,,,http://a.b/c,0.01",
    "",
  ]);
});

test("ids are one a line", () => expect(asIds(hits)).toBe("5\n0\n"));

test("a zip holds the pictures, the hits, and the names of what is missing", async () => {
  const told: number[] = [];
  const fetch = async ({ id }: Hit) => {
    if (id === 0) throw new Problem("missing", "row 0 has no picture");
    return new Blob(["bytes of 5"], { type: "image/png" });
  };
  const { zip, missing } = await zipPictures(hits, fetch, (done) => told.push(done), new AbortController().signal);
  const files = unzipSync(new Uint8Array(await zip.arrayBuffer()));
  expect(Object.keys(files).sort()).toEqual(["00001_5.png", "hits.json", "missing.txt"]);
  expect(strFromU8(files["00001_5.png"]!)).toBe("bytes of 5");
  expect(strFromU8(files["missing.txt"]!)).toBe("0\trow 0 has no picture\n");
  expect([missing, told]).toEqual([1, [1, 2]]);
});

test("no zip is written where the server goes away, or the reader stops", async () => {
  const away = async () => Promise.reject(new Problem("away", "gone"));
  await expect(zipPictures(hits, away, () => {}, new AbortController().signal)).rejects.toThrow("gone");
  await expect(zipPictures(hits, away, () => {}, AbortSignal.abort())).rejects.toThrow();
});
