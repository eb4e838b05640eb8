"""What a file named as a picture, PDF or video is instead, by its first bytes: only for messages."""

from __future__ import annotations

import codecs
import re

from clip_retrieval.git_lfs import describe_pointer

LOOKED_AT = 1024  # bytes
UNREAD = "which is not read; save it as a JPEG or PNG"
RAW = f"a camera's raw picture, {UNREAD}"
AUDIO = "a sound file"
STARTS = (  # as formats' own specifications say
    (b"\xff\xd8\xff", "a JPEG"),
    (b"\x89PNG\r\n\x1a\n", "a PNG"),
    (b"GIF8", "a GIF"),
    (b"%PDF-", "a PDF"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (b"FLV\x01", "a video (Flash)"),
    (b"0&\xb2u\x8ef\xcf\x11", "a video (Windows Media)"),
    (b"\x00\x00\x01\xba", "a video (MPEG)"),
    (b"\x00\x00\x01\xb3", "a video (MPEG)"),
    (b"OggS", "an Ogg file, of sound or video"),
    (b"ID3", AUDIO),
    (b"fLaC", AUDIO),
    (b"\x1f\x8b", "a file compressed with gzip"),
    (b"BZh", "a file compressed with bzip2"),
    (b"\xfd7zXZ\x00", "a file compressed with xz"),
    (b"(\xb5/\xfd", "a file compressed with Zstandard"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"PK\x05\x06", "a zip archive with nothing in it"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),
    (b"{\\rtf", "an RTF document"),
    (b"%!PS", "a PostScript drawing, which is a program"),
    (b"8BPS", "a Photoshop file; save it as a picture"),
    (b"gimp xcf", "a GIMP file; save it as a picture"),
    (b"\xff\x0a", f"a JPEG XL picture, {UNREAD}"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", f"a JPEG XL picture, {UNREAD}"),
    (b"II\xbc\x01", f"a JPEG XR picture, {UNREAD}"),
    (b"v/1\x01", f"an OpenEXR picture, {UNREAD}"),
    (b"#?RADIANCE", f"a Radiance picture, {UNREAD}"),
    (b"DDS ", f"a DDS texture, {UNREAD}"),
    (b"qoif", f"a QOI picture, {UNREAD}"),
    (b"FUJIFILMCCD-RAW", RAW),  # RAF
    (b"II\x1a\x00\x00\x00HEAPCCDR", RAW),  # CRW
    (b"IIRO", RAW),  # ORF, also the next
    (b"IIRS", RAW),
    (b"IIU\x00", RAW),  # RW2
    (b"FOVb", RAW),  # X3F
    (b"\x93NUMPY", "an array of NumPy"),
    (b"PAR1", "a Parquet table"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"\x00\x05\x16\x07", "what macOS keeps beside a file (AppleDouble)"),
)
READ_PICTURES = {"a JPEG", "a PNG", "a GIF", "a WebP"}
WITHIN = ((128, b"DICM", f"a DICOM picture, {UNREAD}"), (257, b"ustar", "a tar"))
RIFF = {b"AVI ": "a video (AVI)", b"WAVE": AUDIO, b"WEBP": "a WebP"}
BRANDS = {b"crx ": RAW, b"M4A ": AUDIO, b"M4B ": AUDIO}  # CR3 is the first
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = HEIC_BRANDS | AVIF_BRANDS
FIRST_MEMBERS = (  # of zip archives, by which applications recognize their files
    (b"[Content_Types].xml", "an Office document"),
    (b"_rels/", "an Office document"),
    (b"mimetypeapplication/vnd.oasis", "an OpenDocument file"),
    (b"mimetypeapplication/epub", "an EPUB book"),
)
MARKUP = (
    (re.compile(r"<svg[\s>]", re.IGNORECASE), "an SVG drawing; save it as a picture"),
    (re.compile(r"<(!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE), "a web page, as servers send for an error"),
    (re.compile(r"^<[?!\w]"), "an XML file, as servers send for an error"),
)
JSON = re.compile(r'\{\s*["}]|\[\s*[\[{"\d\]-]')
NEVER_IN_TEXT = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def describe_other(data: bytes) -> str | None:
    """Return what a file is that is in no known picture format; None if its first bytes do not say."""
    start = data[:LOOKED_AT]
    if data and not start.strip(b"\0") and not data.strip(b"\0"):
        return "nothing but zeros, as a transfer leaves that was cut off"
    return describe_start(start)


def describe_start(start: bytes) -> str | None:
    """Return what a file is by its first LOOKED_AT bytes, or by all bytes of a shorter one."""
    return (describe_binary(start) or describe_pointer(start) or describe_text(start)) if start else None


def read_brands(data: bytes) -> set[bytes]:
    """Return the brands of an ISO media file, from its ftyp box; an empty set for other files."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 256, len(data))
    return {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}


def describe_binary(start: bytes) -> str | None:
    if start.startswith(b"PK\x03\x04"):
        return next((name for first, name in FIRST_MEMBERS if start.startswith(first, 30)), "a zip archive")
    if start.startswith(b"RIFF") and start[8:12] in RIFF:
        return RIFF[start[8:12]]
    brands = read_brands(start)
    if brands & HEIF_BRANDS:
        return "a HEIC or AVIF picture"
    if brands:
        return next((name for brand, name in BRANDS.items() if brand in brands), "a video (MP4 or QuickTime)")
    within = next((name for place, magic, name in WITHIN if start.startswith(magic, place)), None)
    return within or next((name for magic, name in STARTS if start.startswith(magic)), None)


def describe_text(start: bytes) -> str | None:
    text = decode_start(start)
    if text is None or NEVER_IN_TEXT.search(text):
        return None
    text = text.strip()
    if text.startswith("<"):
        return next((name for pattern, name in MARKUP if pattern.search(text)), "a text file")
    return "a JSON file, as servers send for an error" if JSON.match(text) else "a text file"


def decode_start(start: bytes) -> str | None:
    """Return the beginning of a text, whose last character may be cut; None for what is not text."""
    bom, encoding = next(((bom, encoding) for bom, encoding in BOMS if start.startswith(bom)), (b"", "utf-8"))
    try:
        return codecs.getincrementaldecoder(encoding)().decode(start[len(bom) :])
    except UnicodeDecodeError:
        return None
