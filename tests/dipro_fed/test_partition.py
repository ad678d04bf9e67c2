"""The command shows and keeps a partition, and training takes it up again."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dipro_fed.main import app
from dipro_fed.options import scheme_of
from dipro_model.vocabulary import Task
from federation.run_folder import read_run
from simulation.partition.choose import choose_partitioned_sites
from simulation.partition.manifest import read_partition
from simulation.partition.schemes import Scheme, SchemeName
from simulation.train import data_digest
from tests.make_cohort import write_cohort
from tests.small_run import SMALL

SETTINGS = [word for setting in (*SMALL, "training.epochs=1") for word in ("--set", setting)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=32, num_images=2)


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_command_prints_a_row_a_site_and_writes_manifest_and_picture(cohort: Path, tmp_path: Path) -> None:
    options = (
        "--scheme",
        "power-law",
        "--exponent",
        0.5,
        "--sites",
        2,
        "--gap",
        "2:images=2",
        "--gap",
        "2:variables=pH",
    )
    shown = run("partition", cohort, "--out", tmp_path, *options)
    assert re.search(r"site 1 +9 +5 +5 ", shown), shown
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "partition.png"}
    partition = read_partition(tmp_path)
    assert partition.parameters == {"num_sites": 2, "exponent": 0.5, "min_patients": 1}
    assert (partition.sites[1].gaps.max_images, partition.sites[1].gaps.variables) == (2, ("pH",))
    assert "treat it like their records" in shown


def test_training_takes_the_sites_of_a_manifest_and_keeps_it(cohort: Path, tmp_path: Path) -> None:
    scheme = Scheme(name=SchemeName.DIRICHLET, num_sites=2, alpha=2.0)
    run("partition", cohort, "--out", tmp_path, "--scheme", "dirichlet", "--alpha", 2, "--sites", 2)
    train = ("train", cohort, "--task", "mortality", *SETTINGS)
    run(*train, "--out", tmp_path / "run", "--partition", tmp_path / "manifest.json", "--only", "site 2")
    specs, drawn = choose_partitioned_sites([cohort], Task.MORTALITY, num_sites=2, scheme=scheme)
    record = read_run(tmp_path / "run")
    assert (record.sites, record.trained_on) == (("site 1", "site 2"), ("site 2",))
    assert record.more["cohorts"] == {spec.name: data_digest(spec) for spec in specs}
    assert read_partition(tmp_path / "run" / "partition") == read_partition(tmp_path) == drawn
    with pytest.raises(ValueError, match="leave --sites and --scheme out"):
        run(*train, "--out", tmp_path / "both", "--partition", tmp_path, "--scheme", "iid", "--sites", 2)
    assert not (tmp_path / "both").exists()


def test_options_that_do_not_fit_are_refused_by_name() -> None:
    for options, words in (
        ({"name": "iid", "alpha": 0.3}, "--alpha belongs to --scheme dirichlet, found --scheme iid"),
        ({"name": "dirichlet", "sigma": 1.0}, "--sigma belongs to --scheme log_normal"),
        ({"name": None, "gaps": ["2:images=2"]}, "--gap: expected a --scheme beside it"),
        ({"name": None, "min_patients": 3}, "--min-patients: expected a --scheme beside it"),
        ({"name": "by_moon"}, "expected one of iid, log_normal, .*, found 'by_moon'"),
        ({"name": "iid", "gaps": ["two:images=2"]}, "expected the number of a site, a colon"),
        ({"name": "iid", "gaps": ["2:images=few"]}, "expected variables=NAME,NAME or images=NUMBER or region_labels"),
        ({"name": "iid", "gaps": ["2:variables=acid"]}, "found acid; choose among"),
    ):
        with pytest.raises(ValueError, match=words):
            scheme_of(**{"num_sites": 3, **options})
    assert scheme_of(None, num_sites=3) is None
    added = scheme_of("Modality-Gaps", num_sites=3, gaps=["2:variables=ph", "2:region_labels", "2:variables=Albumin"])
    assert added is not None
    assert added.name is SchemeName.MODALITY_GAPS
    assert (added.gaps[2].variables, added.gaps[2].no_region_labels) == (("Albumin", "pH"), True)
