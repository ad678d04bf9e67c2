"""What DiPro was published with, to stand beside own numbers: mean and standard deviation over seeds 23, 29 and 66.

Source: the authors' NeurIPS 2025 slides for arXiv 2510.11112, test split of MIMIC. The standard deviation is that of
pandas, with one less than the number of seeds below the line (get_results.py of github.com/Chenliu-svg/DiPro).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dipro_model.vocabulary import Task

SOURCE = "Liu et al., NeurIPS 2025 (arXiv 2510.11112), authors' slides; MIMIC, test split, seeds 23, 29 and 66"

SEEDS = (23, 29, 66)


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of a published table."""

    name: str
    """What it read."""
    reads_sequence: bool
    """All radiographs of a stay, or the last one only."""
    reads_ehr: bool
    metrics: Mapping[str, tuple[float, float]]
    """Mean and standard deviation, by the name of our metric."""


PUBLISHED: Mapping[Task, tuple[PublishedRow, ...]] = {
    Task.DISEASE_PROGRESSION: (
        PublishedRow(
            name="radiographs only",
            reads_sequence=True,
            reads_ehr=False,
            metrics={
                "f1": (0.453, 0.009),
                "precision": (0.475, 0.004),
                "recall": (0.452, 0.011),
                "auroc": (0.651, 0.016),
                "auprc": (0.468, 0.013),
            },
        ),
    ),
    Task.MORTALITY: (
        PublishedRow(
            name="all radiographs",
            reads_sequence=True,
            reads_ehr=True,
            metrics={"auroc": (0.897, 0.002), "auprc": (0.742, 0.003)},
        ),
        PublishedRow(
            name="last radiograph",
            reads_sequence=False,
            reads_ehr=True,
            metrics={"auroc": (0.885, 0.003), "auprc": (0.712, 0.009)},
        ),
    ),
    Task.LENGTH_OF_STAY: (
        PublishedRow(
            name="all radiographs",
            reads_sequence=True,
            reads_ehr=True,
            metrics={"kappa": (0.248, 0.008), "accuracy": (0.440, 0.007)},
        ),
        PublishedRow(
            name="last radiograph",
            reads_sequence=False,
            reads_ehr=True,
            metrics={"kappa": (0.226, 0.019), "accuracy": (0.427, 0.014)},
        ),
    ),
}
"""DiPro's rows of the published table of each task; the baselines of those tables are left out."""
