"""Finds the sample that kills readers: the suspect is retried alone, then without its picture, then left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clip_retrieval.inference.readers.link import ReaderLostError
from clip_retrieval.inference.types import Row
from clip_retrieval.sources.types import Failure, Sample

MOST_UNEXPLAINED = 5


class Case:
    """One chunk, and the readers that were lost over it."""

    def __init__(self, samples: Sequence[Sample], *, wants_images: bool) -> None:
        self.samples = samples
        self.wants_images = wants_images
        self.losses: dict[int, list[ReaderLostError]] = {}  # place in the chunk -> readers lost there
        self.suspect: int | None = None
        self.unexplained_count = 0

    def next_places(self) -> list[int]:
        """Return the places of the samples to be prepared next: the suspect alone, else all that are not left out."""
        if self.suspect is not None:
            return [self.suspect]
        return [place for place in range(len(self.samples)) if not self.is_left_out(place)]

    def next_samples(self) -> list[Sample]:
        return [
            dataclasses.replace(self.samples[place], image=None) if self.lacks_picture(place) else self.samples[place]
            for place in self.next_places()
        ]

    def note_loss(self, loss: ReaderLostError) -> bool:
        """Record a lost reader; False if too many were lost between samples, so that no sample is to blame."""
        if loss.place is None:
            self.unexplained_count += 1
            return self.unexplained_count < MOST_UNEXPLAINED
        place = self.next_places()[loss.place]
        self.losses.setdefault(place, []).append(loss)
        # One loss may have other causes, such as a lack of memory. Retrying the sample alone in a new reader shows it.
        self.suspect = place if len(self.losses[place]) == 1 else None
        return True

    def acquit(self) -> bool:
        """Record that the last request succeeded; True if it was the whole chunk."""
        is_whole = self.suspect is None
        self.suspect = None
        return is_whole

    def has_picture(self, place: int) -> bool:
        return self.wants_images and self.samples[place].image is not None

    def lacks_picture(self, place: int) -> bool:
        return self.has_picture(place) and len(self.losses.get(place, ())) > 1

    def is_left_out(self, place: int) -> bool:
        return len(self.losses.get(place, ())) > (2 if self.has_picture(place) else 1)

    def complete(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of all samples, those of the blamed ones with their failure."""
        prepared = iter(rows)
        return [
            self.left_out(place) if self.is_left_out(place) else self.with_blame(next(prepared), place)
            for place in range(len(self.samples))
        ]

    def left_out(self, place: int) -> Row:
        sample, loss = self.samples[place], self.losses[place][-1]
        shard = sample.origin.shard if sample.origin else ""
        row = Row.of(sample)
        row.failures.append(Failure(sample.key, shard, "other", loss.reason, describe(loss)))
        row.is_dropped = True
        return row

    def with_blame(self, row: Row, place: int) -> Row:
        """Replace the reason `no_image` by the real one; the rules for rows without a picture are already applied."""
        if self.lacks_picture(place):
            loss = self.losses[place][-1]
            row.failures[:] = [
                dataclasses.replace(failure, reason=loss.reason, detail=describe(loss))
                if (failure.part, failure.reason) == ("image", "no_image")
                else failure
                for failure in row.failures
            ]
        return row


def describe(loss: ReaderLostError) -> str:
    return f"each reader process that prepared it {loss.how}"
