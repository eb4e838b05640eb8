import { expect, test } from "vitest";

import { signLink } from "../src/front/api/links";

const KEY = "a key of some length";

test("a link is signed as the server expects it", () => {
  // Python: hmac.new(b"a key of some length", b"/v1/files/films/7\n1764547200", "sha256").hexdigest()
  expect(signLink(KEY, "/v1/files/films/7", 1764504000)).toEqual({
    expires: "1764547200",
    signature: "2f11e600df5d8a1af7ab206458cb6472c102bd7bf09969b44bbdc725f7fd637b",
  });
});

test("links hold for six to twelve hours and stay the same for a while", () => {
  for (const now of [1764504000, 1764504001.5, 1764525599]) {
    const { expires } = signLink(KEY, "/v1/files/films/7", now);
    expect(Number(expires) - now).toBeGreaterThanOrEqual(6 * 3600);
    expect(Number(expires) - now).toBeLessThanOrEqual(12 * 3600);
  }
  expect(signLink(KEY, "/a", 1764504000)).toEqual(signLink(KEY, "/a", 1764525599));
});
