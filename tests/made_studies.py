"""Made-up studies: several seeds, personal models, and models that are known to be near each other or far apart."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.predictions import Predictions
from federation.run_folder import read_run, write_run


def noted(folder: Path, **facts: Any) -> Path:
    """The run's folder with further facts in its run.json."""
    write_run(folder, replace(read_run(folder), more=facts))
    return folder


def nearly(scored: Predictions, noise: float, seed: int) -> Predictions:
    """The same scores under a little noise, another model of the same skill."""
    generator = np.random.default_rng(seed)
    logits = np.log(scored.probabilities / (1 - scored.probabilities.astype(np.float64)))
    logits += generator.normal(scale=noise, size=logits.shape)
    return replace(scored, probabilities=(1 / (1 + np.exp(-logits))).astype(np.float32))


def drawn_rows(patients: list[tuple], num_resamples: int, seed: int) -> list[np.ndarray]:
    """Rows of every resample, one copy after the other: the project's draws, made without its code.

    patients: of each row its site and subject_id.
    """
    identities = sorted(set(patients))
    rows: Mapping[tuple, list[int]] = {who: [k for k, each in enumerate(patients) if each == who] for who in identities}
    generator = np.random.default_rng(seed)
    chances = np.full(len(identities), 1 / len(identities))
    return [
        np.array(
            [row for who, times in zip(identities, counts, strict=True) for _ in range(times) for row in rows[who]]
        )
        for counts in generator.multinomial(len(identities), chances, size=num_resamples)
    ]
