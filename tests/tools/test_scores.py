from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clip_retrieval.encoder.base import EncoderInfo
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.tools.benchmark import ClassScore, measure
from clip_retrieval.tools.scores import (
    average_prompts,
    choose_scores,
    cosines,
    fill_templates,
    logit_notes,
    logits,
    ranks_of_truth,
    sigmoid,
    softmax,
)

INFO = EncoderInfo("stub", 2, Preprocess(8, (0.5,) * 3, (0.5,) * 3), "f", "fp32", "cpu", logit_scale=10.0)
SIGLIP = replace(INFO, logit_scale=100.0, logit_bias=-10.0)


def test_softmax_is_what_the_formula_says() -> None:
    found = softmax(np.log(np.array([[1.0, 3.0]])))
    np.testing.assert_allclose(found, [[0.25, 0.75]], rtol=1e-6)


@pytest.mark.parametrize("size", [1e4, 1e30, 1e300])
def test_probabilities_of_extreme_logits_are_finite(size: float) -> None:
    extreme = np.array([[size, -size, 0.0], [-size, -size, -size]])
    np.testing.assert_allclose(softmax(extreme), [[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-6)
    np.testing.assert_allclose(sigmoid(extreme), [[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]], atol=1e-6)


def test_sigmoid_judges_each_pair_by_itself() -> None:
    np.testing.assert_allclose(sigmoid(np.log(np.array([[3.0, 1 / 3]]))), [[0.75, 0.25]], rtol=1e-6)


def test_logits_are_scale_times_cosine_plus_bias() -> None:
    cosine = np.array([[0.5]], np.float32)
    assert logits(cosine, INFO)[0, 0] == 5
    assert logits(cosine, SIGLIP)[0, 0] == 40
    assert logits(cosine, replace(INFO, logit_scale=None))[0, 0] == 50
    assert logits(cosine, INFO).dtype == np.float32


def test_auto_is_sigmoid_only_for_models_with_a_bias() -> None:
    assert choose_scores("auto", INFO) == "softmax"
    assert choose_scores("auto", SIGLIP) == "sigmoid"
    assert choose_scores("softmax", SIGLIP) == "softmax"
    assert choose_scores("sigmoid", INFO) == "sigmoid"


def test_numbers_that_the_weights_do_not_say_are_told() -> None:
    assert logit_notes("softmax", INFO) == []
    assert logit_notes("sigmoid", SIGLIP) == []
    assert logit_notes("softmax", replace(INFO, logit_scale=None)) == ["stub does not say its logit scale; 100 is used"]
    assert logit_notes("sigmoid", INFO) == ["stub has no logit bias, and was not trained for sigmoid; 0 is used"]


def test_templates_are_filled_as_they_stand_whatever_braces_a_label_has() -> None:
    assert fill_templates("a {0} dog", ("a photo of {}", "{}: {}")) == ["a photo of a {0} dog", "a {0} dog: a {0} dog"]
    assert fill_templates("dog", ()) == ["dog"]


def test_prompts_are_averaged_on_the_unit_sphere() -> None:
    rows = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(average_prompts(rows, 2), [[half, half], [0, 1]], rtol=1e-6)


def test_a_rank_counts_the_labels_that_do_as_well_and_no_number_is_never_right() -> None:
    cosine = np.array([[0.9, 0.1, 0.2], [0.9, 0.1, 0.2], [0.5, 0.5, 0.5], [np.nan] * 3], np.float32)
    assert ranks_of_truth(cosine, np.array([0, 1, 0, 0])).tolist() == [0, 2, 2, 2]


def test_accuracies_of_a_planted_case() -> None:
    """Seven classes; class a: 4 pictures, 3 right; class b: 1 picture, sixth place; the others: none readable."""
    labels = np.eye(7, dtype=np.float32)
    sixth = np.array([0.9, 0.1, 0.8, 0.7, 0.6, 0.5, 0.0], np.float32)
    third = np.array([0.5, 0, 0.7, 0.6, 0, 0, 0], np.float32)
    pictures = np.stack([labels[0], labels[0], labels[0], third, sixth])
    found = measure(cosines(pictures, labels), np.array([0, 0, 0, 0, 1]), list("abcdefg"))
    assert (found.images, found.micro_1, found.micro_5) == (5, 0.6, 0.8)
    assert (found.macro_1, found.macro_5) == (0.375, 0.5)
    assert found.classes[:3] == (
        ClassScore("a", 4, 0.75, 1.0),
        ClassScore("b", 1, 0.0, 0.0),
        ClassScore("c", 0, None, None),
    )
