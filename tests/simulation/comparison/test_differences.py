"""Differences against scikit-learn on patients drawn by hand, and verdicts where the truth is known."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import sklearn.metrics as sk

from dipro_model.vocabulary import Task
from federation.run_folder import RunError
from simulation.compare import ALONE, Comparison, compare
from simulation.comparison.differences import Difference
from simulation.comparison.study import Study, study
from simulation.runs import load_runs
from tests.made_studies import drawn_rows, nearly, noted
from tests.run_folders import SITES, make_patients, with_scores, write_fake_run

SEEDS = (23, 29, 66)
NUM_RESAMPLES = 60


def found(concluded: Study, metric: str, arm: str, site: str = "pooled") -> Difference:
    (own,) = [each for each in concluded.differences if (each.metric, each.arm, each.site) == (metric, arm, site)]
    return own


def by_hand(comparison: Comparison, pairs: list[tuple[str, str]], metric: str, site: str) -> tuple[float, float, float]:
    """Mean over the pairs of models of their difference, with its 95 % interval, one resample after the other."""
    function = {"auroc": sk.roc_auc_score, "auprc": sk.average_precision_score}[metric]
    first = comparison.predictions[pairs[0][0]]
    rows = np.flatnonzero((first.site == site) | (site == "pooled"))
    patients = list(zip(first.site[rows].tolist(), first.subject_id[rows].tolist(), strict=True))
    labels = first.labels[rows]
    scores = {
        name: comparison.predictions[name].probabilities[rows, 0, 0].astype(float) for pair in pairs for name in pair
    }

    def difference(own: np.ndarray) -> float:
        return fmean(function(labels[own], scores[a][own]) - function(labels[own], scores[b][own]) for a, b in pairs)

    draws = [difference(own) for own in drawn_rows(patients, comparison.num_resamples, comparison.seed)]
    return difference(np.arange(len(rows))), *np.quantile(draws, [0.025, 0.975])


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three seeds of centralized, federated and local training, one run of another strategy, personal models."""
    root, patients = tmp_path_factory.mktemp("seeds"), make_patients(Task.MORTALITY, num_patients=80)
    folders = []
    for number, seed in enumerate(SEEDS):
        folders += [
            write_fake_run(root / f"c{seed}", with_scores(patients, 1.0, number), kind="centralized", seed=seed),
            write_fake_run(root / f"f{seed}", with_scores(patients, 0.9, 10 + number), kind="federated", seed=seed),
        ]
        for place, site in enumerate(SITES):
            scores = with_scores(patients, 0.3, 20 + 2 * number + place)
            name = f"{site} alone"
            folders.append(
                write_fake_run(root / name / str(seed), scores, kind="local", name=name, trained_on=[site], seed=seed)
            )
    other = write_fake_run(root / "m", with_scores(patients, 0.5, 40), kind="federated", name="median", seed=29)
    personal = write_fake_run(root / "p", with_scores(patients, 0.8, 50), kind="federated", name="ditto", seed=23)
    return study(compare(load_runs([*folders, other, noted(personal, personal=True)]), num_resamples=NUM_RESAMPLES))


@pytest.mark.parametrize("metric", ["auroc", "auprc"])
@pytest.mark.parametrize("site", ["pooled", "north"])
def test_seeds_are_paired_and_patients_drawn_whole(seeded: Study, metric: str, site: str) -> None:
    pairs = [(f"federated, seed {seed}", f"centralized, seed {seed}") for seed in SEEDS]
    value, low, high = by_hand(seeded.comparison, pairs, metric, site)
    own = found(seeded, metric, "federated", site)
    assert (own.estimate.value, own.estimate.low, own.estimate.high) == pytest.approx((value, low, high), abs=1e-12)
    assert own.seeds == SEEDS
    cells = seeded.comparison.cells
    for seed in SEEDS:
        one, other = (cells[metric, f"{name}, seed {seed}", site].result.value for name in ("federated", "centralized"))
        assert one is not None
        assert other is not None
        assert own.by_seed[seed] == pytest.approx(one - other, abs=1e-12)


def test_a_single_run_is_paired_with_the_seed_that_it_shares(seeded: Study) -> None:
    expected = by_hand(seeded.comparison, [("median", "centralized, seed 29")], "auroc", "pooled")
    own = found(seeded, "auroc", "median")
    assert (own.estimate.value, own.estimate.low, own.estimate.high) == pytest.approx(expected, abs=1e-12)
    assert own.seeds == (29,)


def test_a_seed_that_nobody_shares_is_subtracted_from_the_mean(seeded: Study) -> None:
    comparison = seeded.comparison
    models = [replace(each, seed=7) if each.label == "median" else each for each in comparison.models]
    own = found(study(replace(comparison, models=tuple(models))), "auroc", "median")
    expected = by_hand(comparison, [("median", f"centralized, seed {seed}") for seed in SEEDS], "auroc", "pooled")
    assert (own.estimate.value, own.estimate.low, own.estimate.high) == pytest.approx(expected, abs=1e-12)
    assert own.seeds == ()


def test_runs_that_differ_by_their_seed_are_one_arm_with_mean_and_sd(seeded: Study) -> None:
    labels = ["centralized", "federated", "median", "ditto", "north alone", "south alone", ALONE]
    assert [arm.label for arm in seeded.arms] == labels
    values = [seeded.comparison.cells["auroc", f"federated, seed {seed}", "south"].result.value for seed in SEEDS]
    own = seeded.values["auroc", "federated", "south"]
    known = [value for value in values if value is not None]
    assert own.estimate.value == pytest.approx(fmean(known), abs=1e-12)
    assert own.sd == pytest.approx(stdev(known), abs=1e-12)
    assert seeded.values["auroc", "median", "south"].sd is None


def test_runs_of_other_settings_are_arms_of_their_own(tmp_path: Path) -> None:
    patients = with_scores(make_patients(Task.MORTALITY), 1.0, 1)
    folders = [
        write_fake_run(tmp_path / str(seed), patients, kind="federated", seed=seed, settings={"rate": rate})
        for seed, rate in ((1, 0.1), (2, 0.1), (3, 0.2))
    ]
    arms = study(compare(load_runs(folders), num_resamples=2)).arms
    assert [(arm.label, tuple(arm.models)) for arm in arms] == [("federated", (1, 2)), ("federated, seed 3", (3,))]


def test_strategies_of_one_name_and_several_seeds_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    patients = with_scores(make_patients(Task.MORTALITY), 1.0, 1)
    folders = [
        write_fake_run(tmp_path / f"{rule}{seed}", patients, kind="federated", seed=seed, settings={"strategy": each})
        for rule, each in (("a", {"name": "fedavg"}), ("p", {"name": "fedprox", "mu": 0.1}))
        for seed in (1, 2)
    ]
    labels = [arm.label for arm in study(compare(load_runs(folders), num_resamples=2)).arms]
    assert labels == [
        "federated (strategy fedavg, strategy.mu not set)",
        "federated (strategy fedprox, strategy.mu 0.1)",
    ]


def verdicts_of(tmp_path: Path, skill: float, noise: float, **options: object) -> dict[str, str | None]:
    """Verdicts on a model that is the reference under noise, or of less skill, by metric."""
    patients = make_patients(Task.MORTALITY, num_patients=300)
    reference = with_scores(patients, 1.0, 1)
    other = nearly(reference, noise, 2) if noise else with_scores(patients, skill, 2)
    folders = [
        write_fake_run(tmp_path / "a", reference, kind="centralized"),
        write_fake_run(tmp_path / "b", other, kind="federated"),
    ]
    concluded = study(compare(load_runs(folders), num_resamples=200), **options)  # pyright: ignore[reportArgumentType]
    return {metric: found(concluded, metric, "federated").verdict for metric in concluded.metrics}


def test_a_model_that_says_the_same_is_non_inferior_and_a_bad_one_inferior(tmp_path: Path) -> None:
    assert verdicts_of(tmp_path / "near", 1.0, 0.05) == {
        "auroc": "non-inferior",
        "auprc": "non-inferior",
        "brier": None,
    }
    assert verdicts_of(tmp_path / "bad", 0.2, 0) == {"auroc": "inferior", "auprc": "inferior", "brier": None}


def test_another_training_of_equal_skill_is_not_shown_to_be_either(tmp_path: Path) -> None:
    assert verdicts_of(tmp_path / "narrow", 1.0, 0)["auroc"] == "not shown"
    wide = verdicts_of(tmp_path / "wide", 1.0, 0, margins={"auroc": 0.2, "brier": 0.2})
    assert (wide["auroc"], wide["brier"]) == ("non-inferior", "non-inferior")


def test_of_a_metric_where_lower_is_better_a_higher_one_is_inferior(tmp_path: Path) -> None:
    assert verdicts_of(tmp_path, 0.2, 0, margins={"brier": 0.01})["brier"] == "inferior"


def test_two_perfect_models_and_few_deaths_get_no_verdict(tmp_path: Path) -> None:
    patients = make_patients(Task.MORTALITY)
    perfect = [with_scores(patients, 8.0, seed) for seed in (1, 2)]
    patient = patients.patients
    rare = np.isin(patient, np.unique(patient[patients.split == "test"])[:8]).astype(np.int8)
    for name, pair, words in (
        ("perfect", perfect, "every resample gives the same difference"),
        ("rare", [with_scores(replace(patients, labels=rare), 1.0, n) for n in (1, 2)], "found 8 of “died”"),
    ):
        folders = [
            write_fake_run(tmp_path / name / kind, scores, kind=kind)
            for kind, scores in zip(("centralized", "federated"), pair, strict=True)
        ]
        own = found(study(compare(load_runs(folders), num_resamples=50)), "auroc", "federated")
        assert own.verdict is None
        assert words in str(own.verdict_reason)


def test_an_undefined_difference_says_why(tmp_path: Path) -> None:
    patients = make_patients(Task.MORTALITY)
    labels = np.where(patients.site == "south", 0, patients.labels).astype(np.int8)
    scores = [with_scores(replace(patients, labels=labels), 1.0, seed) for seed in (1, 2)]
    folders = [
        write_fake_run(tmp_path / kind, own, kind=kind)
        for kind, own in zip(("centralized", "federated"), scores, strict=True)
    ]
    own = found(study(compare(load_runs(folders), num_resamples=10)), "auroc", "federated", "south")
    assert (own.estimate.value, own.verdict) == (None, None)
    assert "two classes" in str(own.verdict_reason)


def test_the_reference_can_be_named_and_is_the_centralized_one_otherwise(seeded: Study) -> None:
    comparison = seeded.comparison
    turned = found(study(comparison, reference="federated"), "auroc", "centralized")
    straight = found(seeded, "auroc", "federated")
    assert seeded.reference == "centralized"
    assert turned.estimate.value == pytest.approx(-(straight.estimate.value or 0))
    assert study(comparison, reference="federated, seed 29").reference == "federated"
    with pytest.raises(RunError, match=r"“centralized”, “federated”, “median”.*found 'pooled'"):
        study(comparison, reference="pooled")
    federated = [run for run in comparison.runs if run.record.kind == "federated"]
    nobody = study(compare(federated, num_resamples=2))
    assert nobody.differences == ()
    assert "no run is centralized" in nobody.notes[0]


@pytest.mark.parametrize(
    ("margins", "words"),
    [({"kappa": 0.1}, "mortality has no metric kappa"), ({"auroc": -0.1}, "above 0"), ({"auroc": np.nan}, "above 0")],
)
def test_margins_that_make_no_sense_are_refused(seeded: Study, margins: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        study(seeded.comparison, margins=margins)


def test_progression_is_compared_by_its_means_over_diseases(tmp_path: Path) -> None:
    patients = make_patients(Task.DISEASE_PROGRESSION)
    folders = [
        write_fake_run(tmp_path / "a", with_scores(patients, 1.5, 1), kind="centralized"),
        write_fake_run(tmp_path / "b", with_scores(patients, 0.2, 2), kind="federated"),
    ]
    comparison = compare(load_runs(folders), num_resamples=40)
    concluded = study(comparison)
    assert concluded.metrics == ("f1", "precision", "recall", "auroc", "auprc", "brier")
    assert found(concluded, "auroc", "federated").verdict == "inferior"
    for metric in concluded.metrics:
        one, other = (comparison.cells[metric, name, "pooled"].result.value for name in ("federated", "centralized"))
        assert found(concluded, metric, "federated").estimate.value == pytest.approx((one or 0) - (other or 0))
        # The same draws stand behind the intervals of the table.
        own = concluded.values[metric, "federated", "south"].estimate
        cell = comparison.cells[metric, "federated", "south"]
        assert (own.low, own.high) == pytest.approx((cell.interval.low, cell.interval.high), abs=1e-12)


def test_gains_are_those_of_joining_over_the_sites_own_models(seeded: Study) -> None:
    pairs = [(f"federated, seed {seed}", f"south alone, seed {seed}") for seed in SEEDS]
    gains = {(each.metric, each.arm, each.site): each for each in seeded.gains}
    for site, own in (("south", pairs), ("pooled", [(a, f"{ALONE}, seed {a[-2:]}") for a, _ in pairs])):
        gain = gains["auroc", "federated", site]
        expected = by_hand(seeded.comparison, own, "auroc", site)
        assert (gain.estimate.value, gain.estimate.low, gain.estimate.high) == pytest.approx(expected, abs=1e-12)
        assert gain.verdict == "gain"
    assert {arm for _, arm, _ in gains} == {"federated", "median", "ditto"}
    assert gains["auroc", "ditto", "south"].seeds == (23,)


def test_the_cross_site_matrix_has_models_that_are_one_for_all_sites(seeded: Study) -> None:
    assert [arm.label for arm in seeded.cross_site] == [
        "north alone",
        "south alone",
        "centralized",
        "federated",
        "median",
    ]
    assert {arm.label: arm.kind for arm in seeded.arms}["ditto"] == "personal"
