from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import open_clip
import pytest

from clip_retrieval.encoder.tokenizer import FEW_PAIRS, MERGE_COUNT, PUBLISHED, BpeTokenizer, clip_vocabulary

BLOCKS = (range(0x20, 0x7F), range(0xA0, 0x250), range(0x300, 0x3000), range(0x3040, 0xA000), range(0x1F300, 0x1FB00))


@pytest.fixture(scope="module")
def tokenizer() -> BpeTokenizer:
    return BpeTokenizer()


@pytest.fixture(scope="module")
def reference() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def unicode_texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(chr(rng.choice(rng.choice(BLOCKS))) for _ in range(rng.randrange(1, 40))) for _ in range(count)]


def test_ids_are_those_of_open_clip(reference: open_clip.SimpleTokenizer) -> None:
    spelled = {PUBLISHED.get(token, token): i for token, i in reference.encoder.items()}
    assert {token: i for i, token in enumerate(clip_vocabulary())} == spelled


@pytest.mark.parametrize(
    "text",
    [
        *("a photo of a dog", "A Photo of a DOG!!! 1234", "don't we'll they're", "", "   ", "\t tabs \n and lines"),
        *("&lt;b&gt; &amp;amp; x", "<start_of_text> x <end_of_text>", "<|startoftext|>", "e\u0301 É ſ K İstanbul"),
        *("naïve café 日本語 🙂👩‍👩‍👧", "l\u2019été", "word " * 100, "x" * 3000, "\u200b\ufeff", "1,000.5 €"),
    ],
)
def test_a_text_has_the_tokens_of_open_clip(
    tokenizer: BpeTokenizer, reference: open_clip.SimpleTokenizer, text: str
) -> None:
    assert tokenizer([text]).tolist() == reference([text]).tolist()
    assert BpeTokenizer()([text]).tolist() == reference([text]).tolist()  # with merges that are looked up one by one


def test_all_merges_are_read_when_a_short_text_does_not_suffice() -> None:
    tokenizer = BpeTokenizer()
    tokenizer(["a red dog"])
    assert 0 < len(tokenizer.ranks) < FEW_PAIRS
    tokenizer(unicode_texts(9))
    assert len(tokenizer.ranks) >= MERGE_COUNT


def test_any_unicode_has_the_tokens_of_open_clip(tokenizer: BpeTokenizer, reference: open_clip.SimpleTokenizer) -> None:
    texts = unicode_texts(1500)
    assert np.array_equal(tokenizer(texts), reference(texts).numpy())


def test_any_ascii_has_the_tokens_of_open_clip(tokenizer: BpeTokenizer, reference: open_clip.SimpleTokenizer) -> None:
    rng = random.Random(1)
    texts = ["".join(chr(rng.randrange(1, 128)) for _ in range(rng.randrange(1, 40))) for _ in range(1500)]
    assert np.array_equal(tokenizer(texts), reference(texts).numpy())


def test_it_needs_neither_torch_nor_open_clip() -> None:
    code = (
        "import sys; from clip_retrieval.encoder.tokenizer import BpeTokenizer; BpeTokenizer()(['a dog']); "
        "sys.exit(bool({'torch', 'open_clip', 'transformers', 'regex', 'ftfy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_vocabulary_is_in_the_order_of_ids_and_spelled_as_published_files_spell_it(
    reference: open_clip.SimpleTokenizer,
) -> None:
    vocabulary = clip_vocabulary()
    assert len(vocabulary) == len(set(vocabulary)) == 49408
    assert vocabulary[:-2] == [reference.decoder[i] for i in range(49406)]
    assert vocabulary[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert (vocabulary[0], vocabulary[256], vocabulary[320]) == ("!", "!</w>", "a</w>")
