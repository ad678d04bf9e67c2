"""The table of predictions: every number under its own name, in both formats."""

from pathlib import Path

import pandas as pd
import pytest

from client.prediction_table import prediction_table, require_table_path, write_prediction_table
from dipro_model.vocabulary import DISEASES, PROGRESSIONS, REGIONS, Task
from tests.run_folders import make_patients, with_scores

IDENTITIES = ["site", "subject_id", "stay_id", "sample_id", "split"]


def test_death_and_length_of_stay_have_a_column_a_class_and_a_region() -> None:
    regions = [f"attention_{name.replace(' ', '_')}" for name in REGIONS]
    died = prediction_table(with_scores(make_patients(Task.MORTALITY), 1.0, 1))
    assert died.column_names == [*IDENTITIES, "probability_died", *regions]
    stayed = prediction_table(with_scores(make_patients(Task.LENGTH_OF_STAY), 1.0, 1))
    days = ["2_to_3_days", "3_to_4_days", "4_to_6_days", "6_days_and_more"]
    assert stayed.column_names == [*IDENTITIES, *(f"probability_{name}" for name in days), *regions]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_every_number_of_progression_is_under_its_own_name(tmp_path: Path, suffix: str) -> None:
    own = with_scores(make_patients(Task.DISEASE_PROGRESSION, num_patients=8), 1.0, 1)
    path = write_prediction_table(own, tmp_path / f"scores{suffix}")
    table = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    assert len(table) == len(own)
    assert table["sample_id"].tolist() == own.sample_id.tolist()
    assert table["stay_id"].tolist() == own.stay_id.tolist()
    assert "label" not in " ".join(table.columns), "predictions say nothing of what happened"
    for k, disease in enumerate(DISEASES):
        name = disease.replace(" ", "_")
        for place, change in enumerate(PROGRESSIONS):
            column = table[f"probability_{name}_{change.replace(' ', '_')}"]
            assert column.tolist() == pytest.approx(own.probabilities[:, k, place].tolist(), rel=1e-6)
        for place, region in enumerate(REGIONS):
            column = table[f"attention_{name}_{region.replace(' ', '_')}"]
            assert column.tolist() == pytest.approx(own.attention[:, k, place].tolist(), rel=1e-6)


def test_another_ending_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file that ends in \.parquet or \.csv"):
        require_table_path(tmp_path / "scores.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="found a folder"):
        require_table_path(tmp_path / "folder.csv")
