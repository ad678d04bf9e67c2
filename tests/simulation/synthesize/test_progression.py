"""Comparisons follow the change of severity."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dipro_model.vocabulary import DISEASES, PROGRESSIONS, REGIONS
from simulation.synthesize.course import FINDINGS, reference_rows
from simulation.synthesize.progression import gold_comparisons, reported_severities, silver_comparisons, true_change


@pytest.fixture(scope="module")
def pairs(courses) -> list[tuple[np.ndarray, np.ndarray]]:
    """Severities before and after, of neighbouring images of 600 patients."""
    found = []
    for _, patient in courses[::4]:
        rows = reference_rows(patient)
        found += [(patient.severities[a], patient.severities[b]) for a, b in pairwise(rows)]
    return found


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [(0.3, 0.4, "worsened"), (0.4, 0.3, "improved"), (0.4, 0.42, "no change"), (0.42, 0.4, "no change")],
)
def test_words_for_a_change(world, before, after, word) -> None:
    assert true_change(before, after, world) == word


def test_silver_agrees_with_the_change_but_for_the_stated_noise(pairs, world) -> None:
    rng = np.random.default_rng(1)
    total = wrong = 0
    for before, after in pairs:
        true = {(c.region, c.disease): c.word for c in gold_comparisons(world, before, after)}
        for said in silver_comparisons(rng, world, before, after):
            # A comparison repeated for the lung is about the disease of that side, named there by its main region.
            side = said.region.split()[0]
            words = {w for (region, disease), w in true.items() if disease == said.disease and region.startswith(side)}
            total += 1
            wrong += {said.word} != words
    # A wrong word is drawn from three, one of which is right.
    assert wrong / total == pytest.approx(world.label_noise * 2.0 / 3.0, abs=0.006)


def test_every_disease_has_all_three_words_in_reasonable_shares(pairs, world) -> None:
    rng = np.random.default_rng(2)
    said = Counter(
        (c.disease, c.word) for before, after in pairs for c in silver_comparisons(rng, world, before, after)
    )
    for disease in DISEASES:
        counts = np.array([said[disease, word] for word in PROGRESSIONS])
        assert counts.min() / counts.sum() > 0.15, (disease, counts)


def test_some_findings_are_not_mentioned_and_regions_are_those_of_the_model(pairs, world) -> None:
    rng = np.random.default_rng(3)
    silver = [silver_comparisons(rng, world, before, after) for before, after in pairs]
    gold = [gold_comparisons(world, before, after) for before, after in pairs]
    mentioned = sum(len({(c.disease, c.region.split()[0]) for c in row}) for row in silver)
    assert mentioned / sum(map(len, gold)) == pytest.approx(world.mention_probability, abs=0.02)
    assert {c.region for row in silver for c in row} <= set(REGIONS)


def test_reversing_the_images_reverses_the_words(pairs, world) -> None:
    opposite = {"worsened": "improved", "improved": "worsened", "no change": "no change"}
    for before, after in pairs[:200]:
        forward = [(c.region, c.disease, opposite[c.word]) for c in gold_comparisons(world, before, after)]
        assert forward == [(c.region, c.disease, c.word) for c in gold_comparisons(world, after, before)]


def test_absent_findings_are_not_mentioned(world) -> None:
    healthy = np.full(len(FINDINGS), 0.05)
    assert gold_comparisons(world, healthy, healthy) == []
    assert silver_comparisons(np.random.default_rng(0), world, healthy, healthy) == []


def test_lung_opacity_is_the_mean_of_the_opacities_of_its_side() -> None:
    severities = np.linspace(0.1, 0.9, len(FINDINGS))
    reported = reported_severities(severities)
    drawn = dict(zip(FINDINGS, severities, strict=True))
    parts = [drawn[name, "right"] for name in ("atelectasis", "consolidation", "pulmonary edema", "pneumonia")]
    assert reported["lung opacity", "right"] == pytest.approx(sum(parts) / 4.0)
