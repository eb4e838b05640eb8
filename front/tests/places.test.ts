import { expect, test } from "vitest";
import { lastPart, leadTo, placeIn } from "../src/shared/places";

test("a page and a frame lead to their place", () => {
  const places = ["/films/a b.mp4#t=12.5", "a.mkv#t=3723", "a#1.PDF#page=3"].map((path) => placeIn(path)!);
  expect(places.map((place) => place.fragment)).toEqual(["#t=12.5", "#t=3723", "#page=3"]);
  expect(places.map(leadTo)).toEqual(["Play at 0:12.5", "Play at 1:02:03", "Page 3"]);
  expect(places[2]!.file).toBe("a#1.PDF");
  for (const path of ["a.jpg", "a.parquet#image/0", "#t=1", "a.mp4#t=1.", undefined, 3]) expect(placeIn(path)).toBe(null);
});

test("a path is called by its last part, with the place in it", () => {
  expect(lastPart("/films/a b.mp4#t=12.5")).toBe("0:12.5 · a b.mp4");
  expect(lastPart("C:\\papers\\a.pdf#page=3")).toBe("page 3 · a.pdf");
  expect(lastPart("/photos/why? #3.jpg")).toBe("why? #3.jpg");
  expect(lastPart("/")).toBe("");
});
