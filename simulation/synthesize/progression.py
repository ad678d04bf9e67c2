"""What a report would say about the change between two radiographs: worsened, improved or no change, by region.

The change of a severity beyond a threshold is named; findings that are absent from both images are not mentioned,
some that are there are left out, and a few silver comparisons say a wrong word. A gold comparison is free of that.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dipro_model.vocabulary import DISEASES, PROGRESSIONS
from simulation.synthesize.course import FINDINGS, LEFT, MIDDLE, RIGHT
from simulation.synthesize.settings import WorldSettings

PRESENT = 0.22
"""A severity over this in either image counts as a finding that a report may mention."""

OPACITIES = ("atelectasis", "consolidation", "pulmonary edema", "pneumonia")
"""Lung opacity is the umbrella of these: its severity is their mean on that side."""

MAIN_REGION: dict[str, str] = {
    "atelectasis": "lower lung zone",
    "enlarged cardiac silhouette": "cardiac silhouette",
    "consolidation": "lower lung zone",
    "pulmonary edema": "hilar structures",
    "lung opacity": "lung",
    "pleural effusion": "costophrenic angle",
    "pneumonia": "lung",
}
"""Where a report places a disease, without its side."""

ALSO_LUNG = ("atelectasis", "consolidation", "pulmonary edema", "pleural effusion")
"""Diseases whose comparison is repeated for the whole lung half of the time."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One statement about one region and disease."""

    region: str
    disease: str
    word: str
    """One of the vocabulary's progressions."""


def reported_severities(severities: Float[np.ndarray, " finding"]) -> dict[tuple[str, str], float]:
    """Severity by disease and side, lung opacity included, in the order of the vocabulary's diseases."""
    drawn = dict(zip(FINDINGS, severities.tolist(), strict=True))
    for side in (LEFT, RIGHT):
        drawn["lung opacity", side] = float(np.mean([drawn[disease, side] for disease in OPACITIES]))
    return {key: drawn[key] for disease in DISEASES for key in sorted(drawn) if key[0] == disease}


def true_change(before: float, after: float, world: WorldSettings) -> str:
    """The word for a change of severity, both in 0 to 1."""
    worsened, improved, unchanged = PROGRESSIONS
    if abs(after - before) <= world.change_threshold:
        return unchanged
    return worsened if after > before else improved


def silver_comparisons(
    rng: np.random.Generator,
    world: WorldSettings,
    before: Float[np.ndarray, " finding"],
    after: Float[np.ndarray, " finding"],
) -> list[Comparison]:
    """The comparisons that a report of the second image makes with the first."""
    found = []
    for disease, side, first, second in _pairs(before, after):
        mentioned = rng.random() < world.mention_probability
        wrong = rng.random() < world.label_noise
        twice = disease in ALSO_LUNG and rng.random() < 0.5
        other = str(rng.choice(PROGRESSIONS))
        if mentioned and max(first, second) > PRESENT:
            word = other if wrong else true_change(first, second, world)
            regions = [_region(disease, side), f"{side} lung"] if twice else [_region(disease, side)]
            found += [Comparison(region=region, disease=disease, word=word) for region in regions]
    return found


def gold_comparisons(
    world: WorldSettings, before: Float[np.ndarray, " finding"], after: Float[np.ndarray, " finding"]
) -> list[Comparison]:
    """The true comparison of every finding that is there."""
    return [
        Comparison(region=_region(disease, side), disease=disease, word=true_change(first, second, world))
        for disease, side, first, second in _pairs(before, after)
        if max(first, second) > PRESENT
    ]


def _pairs(before: np.ndarray, after: np.ndarray) -> list[tuple[str, str, float, float]]:
    first, second = reported_severities(before), reported_severities(after)
    return [(disease, side, first[disease, side], second[disease, side]) for disease, side in first]


def _region(disease: str, side: str) -> str:
    return MAIN_REGION[disease] if side == MIDDLE else f"{side} {MAIN_REGION[disease]}"
