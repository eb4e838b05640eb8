"""Which part of the pipeline is the limit, in one line: from how busy each part was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clip_retrieval.inference.telemetry.stats import Stats

Limit = Literal["unknown", "none", "readers", "reading", "writing", "encoder"]

LEAST_SECONDS = 0.5  # shorter runs are start-up time only
WAITING = 0.25  # shares from which on a part is mentioned
WRITING = 0.5
ENCODING = 0.7
BUSY = 0.5  # readers that are less busy wait for something themselves


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How busy each part was, as shares of the seconds that it existed (0 to 1): parts overlap, so the sum is not 1."""

    seconds: float = 0.0  # worker-seconds that this is about
    wait: float = 0.0  # the encoder waited for samples
    encode: float = 0.0
    write: float = 0.0
    source: float = 0.0  # the one thread that lists, walks tars and reads streams
    read: float = 0.0  # readers: reading bytes
    decode: float = 0.0  # readers: decoding and resizing

    def __str__(self) -> str:
        """Return the shares of the four stages, for a line."""
        named = (("read", max(self.source, self.read)), ("decode", self.decode), ("encode", self.encode))
        return " ".join(f"{name} {percent(share)}" for name, share in (*named, ("write", self.write)))

    def to_json(self) -> dict[str, float]:
        names = ("wait", "encode", "write", "source", "read", "decode")
        return {name: round(getattr(self, name), 4) for name in names}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run uses of a machine, and what it has."""

    readers: int  # reader processes of all workers together
    cores: int


@dataclass(frozen=True)
class Diagnosis:
    """The part that is the limit, and a sentence on it with what to do."""

    limit: Limit
    sentence: str


def shares_of(now: Stats, before: Stats | None = None) -> Shares:
    """Return the shares over a whole run or, given an earlier sum of it, since then."""

    def spent(name: str) -> float:
        return float(getattr(now, name) - (getattr(before, name) if before else 0.0))

    total, readers = spent("total_duration"), spent("reader_duration")
    return Shares(
        seconds=total,
        wait=share(spent("read_duration"), total),
        encode=share(spent("inference_duration"), total),
        write=share(spent("write_duration"), total),
        source=share(spent("source_duration"), total),
        read=share(spent("reader_read_duration"), readers),
        decode=share(spent("reader_decode_duration"), readers),
    )


def share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def diagnose(shares: Shares, machine: Machine) -> Diagnosis:
    """Return what the limit is. A pure function: the same figures give the same sentence."""
    if shares.seconds < LEAST_SECONDS:
        return Diagnosis("unknown", "too short to say what the limit is")
    if shares.write >= WRITING and shares.write > max(shares.encode, shares.wait):
        advice = "a faster disk or store for output_folder would help"
        return Diagnosis("writing", f"writing is the limit ({percent(shares.write)} of the time): {advice}")
    if shares.wait >= WAITING and shares.wait > shares.encode / 2:
        return diagnose_waiting(shares, machine)
    if shares.encode >= ENCODING:
        sentence = f"the encoder is the limit ({percent(shares.encode)} of the time): that is how it should be"
        return Diagnosis("encoder", sentence)
    return Diagnosis("none", f"no part is the limit ({shares}, the encoder waited {percent(shares.wait)})")


def diagnose_waiting(shares: Shares, machine: Machine) -> Diagnosis:
    """Say why the encoder waited for samples."""
    waited = f"the encoder waited {percent(shares.wait)} of the time"
    reader_share = shares.read + shares.decode
    if shares.source >= BUSY and shares.source > reader_share:
        advice = "tars and lists come from one stream: a nearer or faster store, or --cache_path, would help"
        return Diagnosis("reading", f"reading is the limit: {waited}, the source {percent(shares.source)}; {advice}")
    if reader_share < BUSY:
        sentence = (
            f"no part is the limit: {waited}, and readers were idle {percent(1 - reader_share)} (starting, mostly)"
        )
        return Diagnosis("none", sentence)
    if shares.read > shares.decode:
        advice = "more --num_prepro_workers hide the store's delay, a nearer copy removes it"
        return Diagnosis(
            "reading", f"reading is the limit: {waited}; readers spend {percent(shares.read)} reading: {advice}"
        )
    spend = f"readers spend {percent(shares.decode)} decoding"
    return Diagnosis("readers", f"readers are the limit: {waited}; {spend}: {advise_decoding(machine)}")


def advise_decoding(machine: Machine) -> str:
    if machine.readers < machine.cores:
        return f"more --num_prepro_workers ({machine.readers} of {machine.cores} cores used)"
    decoding = f"all {machine.cores} cores decode"
    return f"{decoding}; more cores or smaller pictures would help, and so would --decode fast if exact was given"


def percent(share_of_one: float) -> str:
    return f"{100 * share_of_one:.0f} %"
