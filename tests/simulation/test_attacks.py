"""A malicious site sends what the attack says, and nothing else of it changes."""

import json
from pathlib import Path

import numpy as np
import pytest

from client.records import SiteRecords, SiteSpec
from dipro_model.vocabulary import DISEASES
from federation.run_folder import read_history, read_run
from federation.selection import Entries
from federation.settings import SettingsError
from simulation.attacks import Attack, AttackKind, corrupted, malicious_app, with_flipped_labels
from simulation.in_process import simulate_in_process
from tests.make_cohort import write_cohort
from tests.small_run import small_settings

ENTRIES = Entries(total=6, runs=((0, 2), (4, 6)))
SENT = np.array([1, 2, 3, 4, 5, 6], np.float32)
TRAINED = np.array([2, 2, 9, 9, 4, 6.5], np.float32)
# Updates of the entries: 1, 0, -1, 0.5.


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (AttackKind.SIGN_FLIPPED, [0, 2, 9, 9, 6, 5.5]),
        (AttackKind.SCALED, [101, 2, 9, 9, -95, 56]),
    ],
)
def test_an_update_is_flipped_or_scaled_where_it_is_trained(kind: AttackKind, expected: list[float]) -> None:
    np.testing.assert_allclose(corrupted(kind, TRAINED, SENT, ENTRIES, seed=1), expected)
    assert TRAINED[0] == 2


def test_a_random_update_has_the_honest_length() -> None:
    first, again, other = (corrupted(AttackKind.RANDOM, TRAINED, SENT, ENTRIES, seed=seed) for seed in (1, 1, 2))
    places = [0, 1, 4, 5]
    assert np.linalg.norm((first - SENT)[places]) == pytest.approx(1.5, rel=1e-6)  # sqrt(1 + 0 + 1 + 0.25)
    np.testing.assert_array_equal(first[2:4], TRAINED[2:4])
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_labels_are_turned_round_in_the_training_part_alone(tmp_path: Path) -> None:
    spec = SiteSpec(name="north", cohort=write_cohort(tmp_path / "north", num_patients=8, num_images=2))
    honest = SiteRecords(spec, crop_pixels=16)
    before = {task: dict(labels) for task, labels in honest.labels.items()}
    flipped = with_flipped_labels(honest)
    for number, stay in honest.stays.items():
        turned = stay.split == "train"
        death, length = honest.labels["mortality"][number], honest.labels["length_of_stay"][number]
        assert flipped.labels["mortality"][number] == ((1 - death) if turned else death)
        assert flipped.labels["length_of_stay"][number] == ((3 - length) if turned else length)
    opposite = {0: 1, 1: 0, 2: 2, 3: 3}  # worsened, improved, no change, not mentioned
    for old, new in zip(honest.pairs.to_dict("records"), flipped.pairs.to_dict("records"), strict=True):
        turned = honest.stays[old["stay_id"]].split == "train"
        assert all(new[name] == (opposite[old[name]] if turned else old[name]) for name in DISEASES)
        pair = (old["first_dicom_id"], old["second_dicom_id"])
        regions = honest.region_progression[pair].ravel().tolist()
        expected = [opposite[label] for label in regions] if turned else regions
        assert flipped.region_progression[pair].ravel().tolist() == expected
    assert {task: dict(labels) for task, labels in honest.labels.items()} == before


def test_a_run_with_a_malicious_site_says_so_and_learns_from_it(tmp_path: Path) -> None:
    specs = [
        SiteSpec(name=name, cohort=write_cohort(tmp_path / name, num_patients=16, num_images=2, seed=seed))
        for seed, name in enumerate(("north", "south"))
    ]
    settings = small_settings(
        "parts.radiographs=false", "training.accumulated_batches=1", "federation.rounds=1", "federation.local_epochs=6"
    )
    losses = {}
    for kind in (None, AttackKind.LABEL_FLIPPED, AttackKind.SIGN_FLIPPED):
        attack = None if kind is None else Attack(kind=kind, site="south")
        folder = tmp_path / f"run {kind}"
        record = simulate_in_process(specs, settings, folder, name="mine", attack=attack)
        assert record == read_run(folder)
        assert record.name == "mine"
        assert record.more.get("attack") == (None if kind is None else {"site": "south", "kind": str(kind)})
        assert record.trained_on == ("north", "south")
        val = {each.site: each.loss for each in read_history(folder) if each.split == "val"}
        losses[kind] = val["north"]
        assert json.loads((folder / "run.json").read_text())["results"]["south"]["test"]["auroc"] is not None
    honest, mislabelled, flipped = losses.values()
    assert honest < min(mislabelled, flipped)


def test_an_attack_that_cannot_be_is_refused(tmp_path: Path) -> None:
    spec = SiteSpec(name="north", cohort=tmp_path)
    with pytest.raises(ValueError, match="attack of south: expected one of the sites north"):
        simulate_in_process(
            [spec], small_settings(), tmp_path / "run", attack=Attack(kind=AttackKind.SCALED, site="south")
        )
    assert not (tmp_path / "run").exists()
    attack, coded = Attack(kind=AttackKind.SCALED, site="north"), small_settings("communication.codec=int8")
    with pytest.raises(SettingsError, match=r"expected communication\.codec=fp32, found int8"):
        malicious_app(spec, attack, coded, tmp_path)
