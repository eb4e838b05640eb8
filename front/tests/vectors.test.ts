import { expect, test } from "vitest";
import { packVector, readFloats, unpackVector } from "../src/front/vectors";

test("a packed embedding points where it pointed", () => {
  for (const size of [1, 128, 512, 768]) {
    const numbers = Float32Array.from({ length: size }, (_, at) => Math.sin(at * at + 1));
    const word = packVector(numbers);
    expect(word).toMatch(/^[\w-]+$/);
    const again = unpackVector(word)!;
    const cosine = again.reduce((sum, number, at) => sum + number * numbers[at]!, 0) / Math.hypot(...numbers);
    expect(cosine).toBeGreaterThan(0.9998);
    expect(Math.hypot(...again)).toBeCloseTo(1);
  }
});

test("a damaged word is no embedding", () => {
  expect(unpackVector("A")).toBeNull();
  expect(unpackVector("AAAA")).toBeNull();
});

test("base64 of little-endian float32 is read", () => {
  expect([...readFloats("AACAPwAAAMA=")]).toEqual([1, -2]);
});
