import { expect, test } from "vitest";
import { fileOf, nameOfHit } from "../src/front/names";

const hit = (metadata: Record<string, unknown>) => ({ id: 7, similarity: null, metadata });

test("a hit is called by its caption, else by its file, else by its id", () => {
  expect(nameOfHit(hit({ caption: "a dog", image_path: "/a/b.jpg" }))).toBe("a dog");
  expect(nameOfHit(hit({ caption: " ", image_path: "/a/b c.jpg" }))).toBe("b c.jpg");
  expect(nameOfHit(hit({ url: "https://example.org/pictures/d.png?size=3#top" }))).toBe("d.png");
  expect(nameOfHit(hit({ width: 3 }))).toBe("picture 7");
});

test("the file of a path is its last part, on any system", () => {
  expect(fileOf(hit({ image_path: "C:\\photos\\e.jpg" }))).toBe("e.jpg");
  expect(fileOf(hit({ image_path: "/photos/why? #3.jpg" }))).toBe("why? #3.jpg");
  expect(fileOf(hit({ image_path: "/films/a b.mp4#t=12.5" }))).toBe("0:12.5 · a b.mp4");
  expect(fileOf(hit({ image_path: "/" }))).toBe("");
  expect(fileOf(hit({ image_path: 3 }))).toBe("");
});
