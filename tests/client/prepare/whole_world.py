"""A small complete hospital, tables and radiographs, that can be prepared from its raw files alone."""

from dataclasses import dataclass
from pathlib import Path

from client.cohort import Cohort
from client.prepare.images import METADATA_TABLE
from client.prepare.labels import GOLD_COLUMNS
from client.prepare.pipeline import prepare
from tests.client.prepare.imaging_world import metadata, metadata_row, relationship, write_graph, write_radiograph
from tests.client.prepare.tables_world import CREATININE, HEART_RATE, HEIGHT_CM, WEIGHT_KG, Hospital

NUM_PATIENTS = 10
_HOURS = (4.0, 30.0)
"""When each patient's two radiographs were taken."""


@dataclass(frozen=True)
class RawFiles:
    """Folders of the raw files."""

    tables: Path
    radiographs: Path
    graphs: Path

    def prepare(self, out: Path, **options) -> Cohort:
        return prepare(self.tables, self.radiographs, self.graphs, out, **({"workers": 1} | options))


def write_raw_files(folder: Path) -> RawFiles:
    """Ten patients of one stay and two labelled radiographs each."""
    hospital, rows = Hospital(folder), []
    raw = RawFiles(folder / "raw", folder / "cxr", folder / "imagenome")
    for patient in range(1, NUM_PATIENTS + 1):
        hospital.stay(patient, days=3 + 0.1 * patient, anchor_age=str(40 + patient))
        hospital.chart(-1, HEIGHT_CM, 160 + patient, stay_id=patient)
        hospital.chart(-1, WEIGHT_KG, 60 + patient, stay_id=patient)
        for hour in range(0, 60, 3):
            hospital.chart(hour, HEART_RATE, 60 + (7 * hour + patient) % 40, stay_id=patient)
        hospital.chart(5, CREATININE, 1 + patient / 10, stay_id=patient)
        pair = [metadata_row(f"{patient}-{hour:g}", hour, subject=patient) for hour in _HOURS]
        rows += pair
        _write_images(raw, pair)
    hospital.write()
    metadata(rows).to_csv(raw.radiographs / f"{METADATA_TABLE}.csv", index=False)
    gold = raw.graphs / "gold_dataset" / "gold_object_comparison_with_coordinates.txt"
    gold.parent.mkdir()
    gold.write_text("\t".join(GOLD_COLUMNS) + "\n")
    return raw


def _write_images(raw: RawFiles, pair: list[tuple]) -> None:
    graphs, (first, second) = raw.graphs / "silver_dataset" / "scene_graph", (row[0] for row in pair)
    worse = relationship(first, second, "left lung", ["worsened"], ["anatomicalfinding|yes|lung opacity"])
    for row, relationships in zip(pair, ([], [worse]), strict=True):
        write_radiograph(raw.radiographs / "files", row)
        write_graph(graphs, row[0], relationships=relationships)
