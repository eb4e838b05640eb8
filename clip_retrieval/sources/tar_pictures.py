"""Finds a picture of a tar again by its name in the metadata: a sparse file has no offset there."""

from __future__ import annotations

from collections import defaultdict

from clip_retrieval.blobs import Blob
from clip_retrieval.sources.suffixes import METADATA_SUFFIX, TEXT_SUFFIX, split_key
from clip_retrieval.sources.tar import Damage, read_members
from clip_retrieval.sources.webdataset import group_key
from clip_retrieval.sources.zips import plain_name
from clip_retrieval.words import clean, is_hidden


def find_sparse(image_path: str, url: str) -> Blob:
    """Return the bytes of a sparse file of a tar, or a reference to them. Raises OSError unless one has that name."""
    found, why = defaultdict[int, list[Blob]](list), "it has changed since it was embedded"
    for member in read_members(url, lambda name: is_picture(name) and image_path in names_of(name)):
        if isinstance(member, Damage):
            why = member.detail
        elif member.blob is not None and member.offset is None:
            found[names_of(member.name).index(image_path)].append(member.blob)
    if not found:
        raise OSError(f"it is not found in {url}: {why}")
    closest = found[min(found)]
    if len(closest) > 1:
        raise OSError(f"{len(closest)} sparse files of {url} are called {image_path} in the metadata")
    return closest[0]


def names_of(member: str) -> list[str]:
    """Return what metadata may call a member, closest first: its path, or its key up to the last or the first dot."""
    return [clean(name) for name in (member, plain_name(member), split_key(member)[0], group_key(member))]


def is_picture(member: str) -> bool:
    return not is_hidden(member) and split_key(member)[1] not in (TEXT_SUFFIX, METADATA_SUFFIX)
