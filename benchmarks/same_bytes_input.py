"""Seeded inputs of every format for same_bytes.py: same bytes, names and times wherever they are made."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import faiss
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from make_data import WORDS, write_shards
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

NOW = 1_700_000_000
VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
MODES = ("RGB", "L", "RGBA", "P", "LA", "I;16", "CMYK", "1")
FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def pixels(seed: int, side: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)


def picture(seed: int, form: str = "JPEG", mode: str = "RGB", side: int = 96) -> bytes:
    """Return a file of smooth colors; large JPEGs are decoded at a fraction by default, turned ones carry EXIF."""
    image = pixels(seed, side)
    if mode in ("RGBA", "LA"):
        image.putalpha(pixels(seed + 1, side).convert("L"))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = seed % 8 + 1
    buffer = io.BytesIO()
    image.save(buffer, form, **({"exif": exif, "quality": 90} if form == "JPEG" else {}))
    return buffer.getvalue()


def caption(seed: int) -> str:
    rng = np.random.default_rng([7, seed])
    return "a picture of a " + " ".join(rng.choice(WORDS, rng.integers(2, 12)))


def strange_pictures() -> dict[str, bytes]:
    """Return pictures of many forms and modes, and files that are none, by name."""
    files = {f"form-{form}.{form.lower()}": picture(1, form) for form in FORMS}
    files |= {f"mode-{number}.png": picture(2, "PNG", mode) for number, mode in enumerate(MODES) if mode != "CMYK"}
    files |= {f"turned-{seed}.jpg": picture(seed, side=128) for seed in range(8)}
    files |= {
        "cmyk.jpg": picture(3, mode="CMYK"),
        "large.jpg": picture(4, side=1500),
        "tiny.png": picture(5, "PNG", side=3),
    }
    whole = picture(6, side=200)
    return files | {
        "cut.jpg": whole[: len(whole) // 2],
        "empty.png": b"",
        "text.jpg": b"no picture",
        "page.html": b"<p>",
    }


def write_photos(folder: Path) -> None:
    """Write loose pictures in two folders, with captions and json beside most, and strange ones."""
    for number in range(40):
        place = folder / ("a" if number % 2 else "b/c")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.jpg").write_bytes(picture(number))
        if number % 7:
            (place / f"{number:03d}.txt").write_text(caption(number))
        about = {"id": number, "site": {"name": "made"}, "mixed": number if number % 2 else "x", "rate": number / 3}
        (place / f"{number:03d}.json").write_text(json.dumps(about) if number % 5 else "{")
    (folder / "strange").mkdir()
    for name, content in strange_pictures().items():
        (folder / "strange" / name).write_bytes(content)


def change_photos(folder: Path) -> None:
    """Remove, add, replace and rename photos, and give one another caption."""
    photos = folder / "photos"
    (photos / "a/003.jpg").unlink()
    (photos / "a/new.jpg").write_bytes(picture(500))
    (photos / "a/new.txt").write_text("something new")
    (photos / "b/c/004.jpg").write_bytes(picture(501))
    (photos / "b/c/006.jpg").rename(photos / "b/c/moved.jpg")
    (photos / "b/c/008.txt").write_text("another caption")
    set_times(photos)


def write_tars(folder: Path) -> None:
    """Write shards, one of which also has strange pictures, a cut caption encoding and a lonely caption."""
    write_shards(folder, 48, 16, 72)
    for old in sorted(folder.iterdir()):
        old.rename(folder / f"{int(old.stem):03d}.tar")
    members = strange_pictures() | {"latin.jpg": picture(8), "latin.txt": b"caf\xe9", "lonely.txt": b"no picture"}
    with tarfile.open(folder / "001.tar", "a") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_archives(folder: Path) -> None:
    """Write a zip of loose pictures, stored and compressed, and a compressed tar of the same."""
    folder.mkdir()
    members = {f"album/{number}.jpg": picture(number) for number in range(12)} | strange_pictures()
    members |= {f"album/{number}.txt": caption(number).encode() for number in range(0, 12, 2)}
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive, tarfile.open(folder / "photos.tar.gz", "w:gz") as tar:
        for number, (name, content) in enumerate(members.items()):
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), content, method)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def table(count: int) -> pa.Table:
    pictures = [None if number % 9 == 8 else picture(number) for number in range(count)]
    captions = [None if number % 5 == 4 else caption(number) for number in range(count)]
    nested = [{"width": 128, "site": f"host-{number % 3}"} for number in range(count)]
    columns = {
        "image": pictures,
        "caption": captions,
        "about": nested,
        "score": [number / 7 for number in range(count)],
    }
    return pa.table(columns | {"tags": [["a", "b"][: number % 3] for number in range(count)]})


def write_tables(folder: Path) -> None:
    """Write a table of bytes, one of paths of which some lead nowhere, and a folder as datasets saves it."""
    pq.write_table(table(30), folder / "table.parquet", row_group_size=8)
    (folder / "pointed").mkdir()
    for number in range(10):
        (folder / "pointed" / f"{number}.jpg").write_bytes(picture(number))
    paths = [f"pointed/{number}.jpg" for number in range(14)]
    pq.write_table(
        pa.table({"image_path": paths, "caption": [caption(n) for n in range(14)]}), folder / "paths.parquet"
    )
    for split in ("train", "test"):
        place = folder / "saved" / split
        place.mkdir(parents=True)
        with pa.OSFile(str(place / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, table(4).schema) as stream:
            stream.write_table(table(10 if split == "train" else 4))
        (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}], "_split": split}))
        (place / "dataset_info.json").write_text(json.dumps({"splits": {split: {"num_examples": 10}}}))
    (folder / "saved/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))


def mend_table(folder: Path) -> None:
    """Write two of the four pictures that paths.parquet names and that were missing."""
    for number in (10, 12):
        (folder / "pointed" / f"{number}.jpg").write_bytes(picture(number))
    set_times(folder / "pointed")


def write_urls(path: Path, url: str) -> None:
    """Write a table of urls, for a server that gives web/N.jpg, some of which are not there."""
    (path.parent / "web").mkdir()
    for number in range(10):
        (path.parent / "web" / f"{number}.jpg").write_bytes(picture(number))
    lines = [f'{url}/{number}.jpg,"{caption(number)}",{number}' for number in range(12)]
    path.write_text("url,caption,score\n" + "\n".join([*lines, 'ftp://x/a.jpg,"another scheme",', ",no url,1"]))


def vectors(count: int, dimension: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((200, dimension))
    rows = centers[rng.integers(0, 200, count)] + 0.6 * rng.standard_normal((count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_vectors(folder: Path) -> None:
    """Write an embeddings folder as clip-retrieval 2.45 left it, in two partitions, with zero rows."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for part, count in enumerate((5000, 4000)):
        for seed, name in enumerate(("img_emb", "text_emb")):
            rows = vectors(count, 64, 10 * part + seed)
            rows[:: 500 + seed] = 0
            np.save(folder / name / f"{name}_{part}.npy", rows.astype(np.float16))
        captions = pa.table({"image_path": [f"{part}/{n}.jpg" for n in range(count)], "number": list(range(count))})
        pq.write_table(captions, folder / "metadata" / f"metadata_{part}.parquet")


def write_parts(folder: Path) -> None:
    """Write two parts of one index that were trained together."""
    folder.mkdir()
    rows = vectors(1500, 32, 3)
    trained = faiss.index_factory(32, "IVF16,SQ8", faiss.METRIC_INNER_PRODUCT)
    trained.train(rows)
    data = faiss.serialize_index(trained)
    for number, part in enumerate((rows[:600], rows[600:])):
        index = faiss.deserialize_index(data)
        index.add(part)
        faiss.write_index(index, str(folder / f"part-{number}.index"))


def write_model(folder: Path) -> None:
    """Write an open_clip folder with seeded weights, which every format can take."""
    folder.mkdir()
    config = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    rng, weights = np.random.default_rng(0), {}
    for name, value in sorted(open_clip.CLIP(**config).state_dict().items()):
        noise = torch.from_numpy(rng.standard_normal(tuple(value.shape)).astype(np.float32))
        weights[name] = torch.tensor(4.6) if name == "logit_scale" else (0.1 * noise + (value.ndim == 1)).contiguous()
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    about = {"model_cfg": config, "preprocess_cfg": {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.27, 0.28], "size": 64}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))


def set_times(folder: Path) -> None:
    """Give everything in the folder one time: ledgers and archives keep times."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (NOW, NOW))


def make_inputs(folder: Path, url: str) -> None:
    """Write every input below the folder."""
    faiss.omp_set_num_threads(1)
    folder.mkdir(parents=True)
    write_photos(folder / "photos")
    write_tars(folder / "tars")
    write_archives(folder / "archives")
    write_tables(folder)
    write_urls(folder / "urls.csv", url)
    write_vectors(folder / "vectors")
    write_parts(folder / "parts")
    write_model(folder / "model")
    set_times(folder)
