"""How close the fast pixels are to the exact ones, and the CPU time of a picture in each way.

    python benchmarks/decode.py near [--models demo random:ViT-B-32] [--least 1 1.25 1.5 2] [--pictures screenshots]
    python benchmarks/decode.py modes [--models demo random:ViT-B-32]
    python benchmarks/decode.py speed [--repeats 15]

`near` needs scikit-learn and scikit-image for their photographs. It crops each to landscape, portrait and wide, scales
it to short sides of 256 to 3,000 px (with a sensor's noise where it is scaled up, which would else be smooth), and
encodes it as JPEG at several qualities and subsamplings. The exact and the fast pixels of each go through the models.
Centered cosines are of the embeddings less their mean: random models give all pictures much the same direction.
`--least` asks the same of other bounds than the one that is built in, where they ask for more than LEAST_SIDE pixels.
`--pictures screenshots` draws text, grids, windows and graphs instead, JPEG and PNG.

`modes` saves those photographs in every mode that resizing treats in its own way. It compares the fast and the exact
pixels with each other, and each of them with what a viewer shows: the picture in RGB, on white, resized exactly.

`speed` prints CPU milliseconds for a picture on one core, medians of rounds in which all ways take turns: ratios are to
be trusted, single figures less. `simplejpeg` is the fast way with that decoder, where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, ImageFont

from clip_retrieval import load_encoder
from clip_retrieval.encoder import preprocess as preprocess_module
from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.images import decode_image
from clip_retrieval.encoder.pictures import read_pixels
from clip_retrieval.encoder.preprocess import LEAST_AVERAGED, LEAST_DECODED, LEAST_SIDE, Preprocess
from clip_retrieval.encoder.resizing import resize_near

PHOTOGRAPHS = (
    "astronaut.png coffee.png chelsea.png rocket.jpg retina.jpg hubble_deep_field.jpg motorcycle_left.png camera.png"
).split()
SHORT_SIDES = (256, 320, 400, 480, 640, 768, 1080, 1536, 2160, 3000)
QUALITIES, SUBSAMPLINGS = (75, 85, 92, 97), (2, 0, 1)
LONGEST = 6000
SCREENS = (
    (640, 480), (800, 600), (1024, 768), (1280, 720), (1366, 768), (1920, 1080), (1080, 1920), (750, 1334),
    (1170, 2532), (2560, 1440), (3840, 2160), (400, 300), (512, 512), (1000, 1000),
)  # fmt: skip
SCREENSHOTS = 560
NOISE = 6  # levels of 255
SIZES = ((340, 256), (640, 480), (1920, 1080), (4000, 3000))
COLUMNS = (
    "model", "decoded at least at", "cosine: mean", "1st percentile", "min", "centered: 1st percentile", "min",
    "PSNR, dB: mean", "1st percentile", "min",
)  # fmt: skip
MODE_SIDES = (180, 300, 500, 900, 1600)  # short sides of the pictures in many modes
MODE_COLUMNS = (
    "model", "picture", "fast to exact: mean, least", "fast without alpha to exact", "fast to what is seen",
    "exact to what is seen", "levels between fast and exact",
)  # fmt: skip
SOFT, HARD = [255 - far for far in range(256)], [255 * (far < 150) for far in range(256)]  # alpha by distance
EXACT, FAST = PictureConfig(decode="exact"), PictureConfig(decode="fast")
DROPPED = PictureConfig(decode="fast", transparency="drop")

Change = Callable[[Image.Image], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("near", "modes", "speed"))
    parser.add_argument("--models", nargs="+", default=["demo", "random:ViT-B-32"])
    parser.add_argument("--least", nargs="+", type=float, default=[LEAST_DECODED])
    parser.add_argument("--pictures", choices=("photographs", "screenshots"), default="photographs")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.what == "near":
        print_nearness(
            arguments.models,
            arguments.least,
            list(make_jpegs() if arguments.pictures == "photographs" else make_screenshots()),
        )
    elif arguments.what == "modes":
        print_modes(arguments.models)
    else:
        print_speed(arguments.repeats)


def photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    spec = importlib.util.find_spec("skimage")
    assert spec is not None, "pip install scikit-image"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    own = [Image.fromarray(image) for image in load_sample_images().images]
    return own + [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]


def crops(image: Image.Image) -> Iterator[Image.Image]:
    width, height = image.size
    side = min(width, height)
    yield image
    narrow = side * 2 // 3
    yield image.crop(((width - narrow) // 2, (height - side) // 2, (width + narrow) // 2, (height + side) // 2))
    yield image.crop((0, 0, side, side * 9 // 16))


def make_jpegs() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    cropped = [crop for image in photographs() for crop in crops(image)]
    for number, (image, side) in enumerate((image, side) for image in cropped for side in SHORT_SIDES):
        scale = side / min(image.size)
        if max(image.size) * scale > LONGEST:
            continue
        scaled = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        if scale > 1:
            values = np.asarray(scaled, np.int16)
            noisy = values + rng.integers(-NOISE, NOISE + 1, values.shape, np.int16)
            scaled = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        file = io.BytesIO()
        quality, subsampling = QUALITIES[number % len(QUALITIES)], SUBSAMPLINGS[number % len(SUBSAMPLINGS)]
        scaled.save(file, "JPEG", quality=quality, subsampling=subsampling, progressive=number % 5 == 0)
        yield file.getvalue()


def make_screenshots() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for number in range(SCREENSHOTS):
        width, height = SCREENS[number % len(SCREENS)]
        image = Image.new("RGB", (width, height), color(rng, 215, 256) if number % 2 else color(rng, 0, 50))
        draw = ImageDraw.Draw(image)
        ink = color(rng, 0, 70) if number % 2 else color(rng, 180, 256)
        (draw_text, draw_grid, draw_windows, draw_graph)[rng.integers(4)](draw, ink, rng)
        file = io.BytesIO()
        if number % 3 == 2:
            image.save(file, "PNG", compress_level=1)
        else:
            image.save(file, "JPEG", quality=int(rng.choice(QUALITIES)), subsampling=int(rng.choice((0, 2))))
        yield file.getvalue()


def color(rng: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(value) for value in rng.integers(low, high, 3))


def draw_text(draw: ImageDraw.ImageDraw, ink: tuple[int, ...], rng: np.random.Generator) -> None:
    size = int(rng.integers(9, 26))
    font, (width, height) = ImageFont.load_default(size), draw.im.size
    for y in range(4, height, int(size * 1.3)):
        length = int(rng.integers(3, max(4, 2 * width // size)))
        draw.text((8, y), "".join(rng.choice(list("abcdefghij klmnopqrst uvwxyz  {}();=+-/"), length)), ink, font)


def draw_grid(draw: ImageDraw.ImageDraw, ink: tuple[int, ...], rng: np.random.Generator) -> None:
    width, height = draw.im.size
    for x in range(0, width, int(rng.integers(4, 40))):
        draw.line((x, 0, x, height), ink)
    for y in range(0, height, int(rng.integers(4, 40))):
        draw.line((0, y, width, y), ink)


def draw_windows(draw: ImageDraw.ImageDraw, ink: tuple[int, ...], rng: np.random.Generator) -> None:
    width, height = draw.im.size
    for _ in range(12):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        right, bottom = left + int(rng.integers(20, width // 2)), top + int(rng.integers(20, height // 2))
        draw.rectangle((left, top, right, bottom), color(rng, 0, 256), ink)
        for y in range(top, min(bottom, height), int(rng.integers(2, 6))):
            draw.line((left, y, right, y), ink)


def draw_graph(draw: ImageDraw.ImageDraw, _: tuple[int, ...], rng: np.random.Generator) -> None:
    for _ in range(30):
        points = [tuple(int(value) for value in point) for point in rng.integers(0, draw.im.size, (6, 2))]
        draw.line(points, color(rng, 0, 256), int(rng.integers(1, 3)))


def print_nearness(models: list[str], bounds: list[float], jpegs: list[bytes]) -> None:
    print(f"{len(jpegs)} pictures\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for uri in models:
        encoder = load_encoder(uri)
        ready = encoder.info.preprocess
        exact = np.stack([read_pixels(data, ready, EXACT) for data in jpegs])
        rows = embed(encoder, exact)
        for bound in bounds:
            preprocess_module.LEAST_DECODED = bound
            fast = np.stack([read_pixels(data, ready, FAST) for data in jpegs])
            found = embed(encoder, fast)
            center = rows.mean(axis=0)
            cosines, centered = row_cosines(rows, found), row_cosines(rows - center, found - center)
            ratios = psnr(exact, fast)
            cells = [
                uri, f"{max(bound, LEAST_SIDE / ready.size):g} x {ready.size}",
                f"{cosines.mean():.5f}", f"{np.percentile(cosines, 1):.5f}", f"{cosines.min():.5f}",
                f"{np.percentile(centered, 1):.5f}", f"{centered.min():.5f}",
                f"{ratios.mean():.1f}", f"{np.percentile(ratios, 1):.1f}", f"{ratios.min():.1f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


def print_modes(models: list[str]) -> None:
    pictures = {name: [save(image) for image in scaled_photographs()] for name, save in mode_writers().items()}
    print(f"| {' | '.join(MODE_COLUMNS)} |\n{'|---' * len(MODE_COLUMNS)}|")
    for uri in models:
        encoder = load_encoder(uri)
        ready = encoder.info.preprocess
        for name, files in pictures.items():
            ways = [np.stack([read_pixels(data, ready, way) for data in files]) for way in (EXACT, FAST, DROPPED)]
            ways.append(np.stack([ready(decode_image(data)) for data in files]))
            exact, fast, dropped, seen = (embed(encoder, pixels) for pixels in ways)
            cells = [uri, name]
            for one, other in ((fast, exact), (dropped, exact), (fast, seen), (exact, seen)):
                cosines = row_cosines(one, other)
                cells.append(f"{cosines.mean():.4f}, {cosines.min():.4f}")
            cells.append(f"{np.abs(ways[0].astype(np.int16) - ways[1]).mean():.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)


def scaled_photographs() -> list[Image.Image]:
    cropped = [crop for image in photographs() for crop in crops(image)]
    scaled = []
    for number, image in enumerate(cropped):
        scale = MODE_SIDES[number % len(MODE_SIDES)] / min(image.size)
        scaled.append(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS))
    return scaled


def mode_writers() -> dict[str, Callable[[Image.Image], bytes]]:
    """Return for each kind of picture what saves a photograph as one."""
    rgb, rgba, soft, hard = to_mode("RGB"), to_mode("RGBA"), cut_out(SOFT), cut_out(HARD)
    return {
        "RGB PNG": writer("PNG", rgb),
        "RGB PNG, one color transparent": writer("PNG", rgb, transparency=(255, 0, 255)),
        "palette GIF": writer("GIF", own_palette),
        "palette GIF, dithered": writer("GIF", to_mode("P")),
        "palette GIF, animated": writer("GIF", own_palette, frames=2),
        "palette PNG": writer("PNG", own_palette),
        "palette PNG, one color transparent": writer("PNG", own_palette, transparency=0),
        "1 bit PNG, dithered": writer("PNG", to_mode("1")),
        "L PNG": writer("PNG", to_mode("L")),
        "L JPEG": writer("JPEG", to_mode("L")),
        "I;16 PNG": writer("PNG", to_16_bits),
        "LA PNG, opaque": writer("PNG", to_mode("LA")),
        "LA PNG, soft alpha": writer("PNG", lambda image: soft(image).convert("LA")),
        "RGBA PNG, opaque": writer("PNG", rgba),
        "RGBA PNG, soft alpha": writer("PNG", soft),
        "RGBA PNG, cut out": writer("PNG", hard),
        "RGBA WebP, cut out": writer("WEBP", hard, quality=90),
        "WebP, animated": writer("WEBP", rgb, frames=2),
        "CMYK JPEG": writer("JPEG", to_mode("CMYK")),
        "CMYK TIFF": writer("TIFF", to_mode("CMYK")),
        "YCbCr TIFF": writer("TIFF", to_mode("YCbCr")),
        "LAB TIFF": writer("TIFF", to_lab),
    }


def writer(kind: str, change: Change, frames: int = 1, **options: Any) -> Callable[[Image.Image], bytes]:
    def save(image: Image.Image) -> bytes:
        file, changed = io.BytesIO(), change(image)
        more = {"save_all": True, "append_images": [changed.transpose(Image.Transpose.ROTATE_180)]}
        changed.save(file, kind, **options, **(more if frames > 1 else {}))
        return file.getvalue()

    return save


def to_mode(mode: str) -> Change:
    return lambda image: image.convert(mode)


def own_palette(image: Image.Image) -> Image.Image:
    return image.quantize(256, dither=Image.Dither.NONE)


def to_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def to_lab(image: Image.Image) -> Image.Image:
    srgb, lab_profile = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    changed = ImageCms.profileToProfile(image, srgb, lab_profile, outputMode="LAB")
    assert changed is not None
    return changed


def cut_out(alphas: list[int]) -> Change:
    """Return what gives a picture the alpha of this table, by the distance from its center."""

    def change(image: Image.Image) -> Image.Image:
        changed = image.convert("RGBA")
        changed.putalpha(Image.radial_gradient("L").resize(image.size).point(alphas))
        return changed

    return change


def embed(encoder: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([encoder.encode_images(pixels[at : at + 32]) for at in range(0, len(pixels), 32)])


def row_cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    product: NDArray[np.float32] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return product


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return dB for each picture, at most 99."""
    errors = np.array([((x.astype(float) - y) ** 2).mean() for x, y in zip(a, b, strict=True)])
    ratios: NDArray[np.float64] = 10 * np.log10(255**2 / np.maximum(errors, 255**2 / 10**9.9))
    return ratios


def print_speed(repeats: int) -> None:
    ready = Preprocess(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    ways = ways_of(ready)
    print(f"| picture | {' | '.join(ways)} | exact : fast |")
    print("|---" * (len(ways) + 2) + "|")
    base = photographs()[0]
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})):
        for width, height in SIZES:
            file = io.BytesIO()
            base.resize((width, height), Image.Resampling.LANCZOS).save(file, kind, **{"quality": 90, **options})
            name = f"{kind}{' progressive' if options else ''} {width} x {height}"
            print_row(name, file.getvalue(), ways, repeats)


def print_row(name: str, data: bytes, ways: dict[str, Callable[[bytes], Any]], repeats: int) -> None:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats if len(data) < 10**6 else max(3, repeats // 3)):
        for way, run in ways.items():
            if way == "simplejpeg" and not name.startswith("JPEG"):
                continue
            start = time.process_time()
            run(data)
            seconds[way].append(time.process_time() - start)
    medians = {way: float(np.median(taken)) * 1000 for way, taken in seconds.items() if taken}
    cells = [f"{medians[way]:.2f}" if way in medians else "" for way in ways]
    print(f"| {name} | {' | '.join(cells)} | {medians['exact'] / medians['fast']:.1f} x |", flush=True)


def ways_of(ready: Preprocess) -> dict[str, Callable[[bytes], Any]]:
    import open_clip
    import torch

    torch.set_num_threads(1)  # waiting threads would count as work
    transform: Any = open_clip.image_transform(ready.size, is_train=False)
    ways: dict[str, Callable[[bytes], Any]] = {
        "open_clip's transform": lambda data: transform(Image.open(io.BytesIO(data))),
        "exact": lambda data: read_pixels(data, ready, EXACT),
        "fast": lambda data: read_pixels(data, ready, FAST),
    }
    if importlib.util.find_spec("simplejpeg") is not None:
        ways["simplejpeg"] = lambda data: with_simplejpeg(data, ready)
    return ways


def with_simplejpeg(data: bytes, ready: Preprocess) -> NDArray[np.uint8]:
    """Do what the fast way does with another decoder."""
    import simplejpeg  # type: ignore[import-untyped,import-not-found,unused-ignore]

    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    least = ready.least_size(width, height)
    room = min(width // least[0], height // least[1])
    factor = next((factor for factor in (8, 4, 2) if room >= factor), 1)
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=-(-width // factor), min_height=-(-height // factor))
    fit, extent = ready.fit(width, height), (width / factor, height / factor)
    window = ready.window(fit, extent)
    return ready.framed(resize_near(Image.fromarray(pixels), window, ready.interpolation, LEAST_AVERAGED), window)


if __name__ == "__main__":
    main()
