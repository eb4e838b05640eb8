"""Which part is the limit: a table of what runs look like."""

from __future__ import annotations

import pytest

from clip_retrieval.inference.telemetry.diagnosis import Machine, Shares, diagnose, shares_of
from clip_retrieval.inference.telemetry.stats import Stats, add_up

LONG = 100.0
FEW, ALL = Machine(readers=2, cores=8), Machine(readers=8, cores=8)
TABLE = [
    (Shares(seconds=LONG, wait=0.04, encode=0.94, read=0.05, decode=0.3), ALL,
     "the encoder is the limit (94 % of the time): that is how it should be"),
    (Shares(seconds=LONG, wait=0.62, encode=0.36, read=0.1, decode=0.8), FEW,
     "readers are the limit: the encoder waited 62 % of the time; readers spend 80 % decoding: more "
     "--num_prepro_workers (2 of 8 cores used)"),
    (Shares(seconds=LONG, wait=0.62, encode=0.36, read=0.1, decode=0.8), ALL,
     "readers are the limit: the encoder waited 62 % of the time; readers spend 80 % decoding: all 8 cores decode; "
     "more cores or smaller pictures would help, and so would --decode fast if exact was given"),
    (Shares(seconds=LONG, wait=0.7, encode=0.3, read=0.9, decode=0.05), FEW,
     "reading is the limit: the encoder waited 70 % of the time; readers spend 90 % reading: more --num_prepro_workers "
     "hide the store's delay, a nearer copy removes it"),
    (Shares(seconds=LONG, wait=0.7, encode=0.3, source=0.95, decode=0.2), FEW,
     "reading is the limit: the encoder waited 70 % of the time, the source 95 %; tars and lists come from one stream: "
     "a nearer or faster store, or --cache_path, would help"),
    (Shares(seconds=LONG, wait=0.1, encode=0.2, write=0.9), ALL,
     "writing is the limit (90 % of the time): a faster disk or store for output_folder would help"),
    (Shares(seconds=LONG, wait=0.9, encode=0.05, read=0.01, decode=0.09), ALL,
     "no part is the limit: the encoder waited 90 % of the time, and readers were idle 90 % (starting, mostly)"),
    (Shares(seconds=LONG, wait=0.2, encode=0.5, read=0.1, decode=0.4, write=0.1), ALL,
     "no part is the limit (read 10 % decode 40 % encode 50 % write 10 %, the encoder waited 20 %)"),
    (Shares(seconds=0.1, wait=0.9), ALL, "too short to say what the limit is"),
]  # fmt: skip


@pytest.mark.parametrize(("shares", "machine", "sentence"), TABLE, ids=[row[2][:30] for row in TABLE])
def test_the_limit_is_told_in_one_line(shares: Shares, machine: Machine, sentence: str) -> None:
    assert diagnose(shares, machine).sentence == sentence


def test_a_busy_encoder_is_the_limit_although_it_waits_for_its_last_samples() -> None:
    shares = Shares(seconds=LONG, wait=0.26, encode=0.74, decode=0.9)

    assert diagnose(shares, ALL).limit == "encoder"


def test_shares_are_of_the_seconds_that_each_part_had() -> None:
    worker = {
        "total_duration": 10.0,
        "reader_duration": 40.0,
        "inference_duration": 8.0,
        "reader_decode_duration": 20.0,
    }
    both = add_up([{**Stats().to_json(), **worker}] * 2)

    shares = shares_of(both)

    assert (shares.seconds, shares.encode, shares.decode, shares.write) == (20.0, 0.8, 0.5, 0.0)


def test_shares_since_an_earlier_look_leave_out_what_was_before() -> None:
    before = Stats(total_duration=100.0, inference_duration=0.0, read_duration=100.0)
    now = Stats(total_duration=110.0, inference_duration=9.0, read_duration=101.0)

    shares = shares_of(now, before)

    assert (shares.wait, shares.encode) == pytest.approx((0.1, 0.9))
