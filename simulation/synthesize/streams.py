"""Randomness derived from (seed, hospital, patient, purpose), so that neither order nor workers change a byte."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream of random numbers is for; a change in one purpose leaves the others as they were."""

    HOSPITAL = 0
    COURSE = 1
    CHARTING = 2
    REPORTS = 3
    ANATOMY = 4
    PIXELS = 5
    GROUPS = 6


def random_stream(seed: int, hospital: int, patient: int, purpose: Stream) -> np.random.Generator:
    """The generator of one patient of one hospital (both counted from 0) for one purpose."""
    return np.random.default_rng(np.random.SeedSequence([seed, hospital, patient, int(purpose)]))
