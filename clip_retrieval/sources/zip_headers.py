"""The header before each member of a zip: its length, and the checksum of the bytes that follow it."""

from __future__ import annotations

from clip_retrieval.blobs import open_raw

LOCAL_HEADER = 30  # bytes before name and extra field
LOCAL_MAGIC = b"PK\x03\x04"
LONGEST_FIELDS = 2 * 0xFFFF  # bytes of name and extra field
CRC_FOLLOWS = 0x8  # flag: the checksum follows the data
DESCRIPTOR_MAGIC = b"PK\x07\x08"


def length_of_fields(header: bytes) -> int:
    """Return the combined length of the name and extra field after a local header."""
    return sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))


def stored_crc(url: str, offset: int, size: int) -> int | None:
    """Return the CRC-32 of the stored member whose bytes are at this offset; None if there is no such member."""
    start = max(0, offset - LOCAL_HEADER - LONGEST_FIELDS)
    with open_raw(url) as file:
        file.seek(start)
        before = file.read(offset - start)
        place = before.rfind(LOCAL_MAGIC)
        while place >= 0 and place + LOCAL_HEADER + length_of_fields(before[place:]) != len(before):
            place = before.rfind(LOCAL_MAGIC, 0, place)
        if place < 0:
            return None
        if not before[place + 6] & CRC_FOLLOWS:
            return int.from_bytes(before[place + 14 : place + 18], "little")
        file.seek(offset + size)
        after = file.read(8)
        return int.from_bytes(after.removeprefix(DESCRIPTOR_MAGIC)[:4], "little")
