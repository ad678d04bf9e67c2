"""A sweep's file says what it means, and what it cannot mean is refused by name."""

from pathlib import Path

import pytest
import yaml

from dipro_model.vocabulary import Task
from simulation.sweep.cells import make_cells
from simulation.sweep.plan import SweepError, load_sweep
from tests.make_cohort import write_cohort
from tests.small_run import SMALL

CONFIGS = Path(__file__).parents[2] / "configs" / "sweeps"


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two hospitals of different patients."""
    folder = tmp_path_factory.mktemp("cohorts")
    return [
        write_cohort(folder / name, num_patients=24, num_images=2, seed=seed, first_subject=100 + 500 * seed)
        for seed, name in enumerate(("north", "south"))
    ]


def plan(cohorts: list[Path]) -> dict:
    """A small plan, to be changed."""
    return {
        "task": "mortality",
        "set": dict(setting.split("=") for setting in SMALL),
        "seeds": [1, 2],
        "cohorts": {"one": [str(cohorts[0])], "both": [str(each) for each in cohorts]},
        "partitions": {
            "iid": {"cohorts": "one", "scheme": "iid", "sites": 2},
            "sizes": {"cohorts": "one", "scheme": "power_law", "sites": 2, "exponent": 0.3},
            "gaps": {"cohorts": "one", "scheme": "iid", "sites": 2, "gaps": {2: {"variables": ["pH"]}}},
            "hospitals": {"cohorts": "both", "scheme": "cohorts"},
        },
        "models": {
            "centralized": {"kind": "centralized"},
            "local": {"kind": "local", "partitions": ["iid"]},
            "fedavg": {"kind": "federated"},
            "fedprox": {"kind": "federated", "set": {"strategy.name": "fedprox", "strategy.mu": 0.5}},
        },
        "attacks": {"noise": {"kind": "random", "site": 2, "models": ["fedprox"], "partitions": ["hospitals"]}},
    }


def written(tmp_path: Path, content: dict) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_cells_are_the_product_and_centralized_runs_are_shared(tmp_path: Path, cohorts: list[Path]) -> None:
    sweep = load_sweep(written(tmp_path, plan(cohorts)))
    cells = make_cells(sweep).cells
    first = [cell for cell in cells if cell.seed == 1]
    assert len(cells) == 2 * len(first)
    assert {cell.name.removesuffix("/seed_1"): cell.partitions for cell in first} == {
        "all of one/centralized": ("iid", "sizes"),
        "gaps/centralized": ("gaps",),
        "all of both/centralized": ("hospitals",),
        "iid/local/site 1": ("iid",),
        "iid/local/site 2": ("iid",),
        **{f"{place}/{name}": (place,) for place in plan(cohorts)["partitions"] for name in ("fedavg", "fedprox")},
        "hospitals/fedprox/noise": ("hospitals",),
    }
    by_name = {cell.name: cell for cell in cells}
    prox = by_name["iid/fedprox/seed_2"]
    assert (prox.settings.strategy.name, prox.settings.strategy.mu, prox.settings.seed) == ("fedprox", 0.5, 2)
    assert prox.settings.task is Task.MORTALITY
    assert prox.settings.federation.num_sites == 2
    attacked = by_name["hospitals/fedprox/noise/seed_1"]
    assert attacked.attack is not None
    assert attacked.attack.site == "south"
    assert attacked.digest != by_name["hospitals/fedprox/seed_1"].digest
    again = make_cells(load_sweep(written(tmp_path, plan(cohorts)))).cells
    assert [cell.digest for cell in again] == [cell.digest for cell in cells]
    assert len({cell.digest for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "seed: unknown; docs/sweeps.md lists"),
        ({"seeds": [1, 1]}, r"seeds: expected different numbers, found \[1, 1\]"),
        ({"seeds": []}, "seeds: list should have at least 1 item"),
        ({"partitions": None}, "partitions: input should be a valid dictionary, found None"),
        ({"partitions": {"iid": {"cohorts": "other", "scheme": "iid"}}}, r"\(one, both\), found 'other'"),
        ({"partitions": {"iid": {"cohorts": "one", "scheme": "even"}}}, "partitions, iid, scheme: input should be"),
        (
            {"partitions": {"iid": {"cohorts": "one", "scheme": "iid", "alpha": 1.0}}},
            "alpha belongs to the scheme diri",
        ),
        ({"models": {"a/b": {"kind": "federated"}}}, "models, a/b: expected a name of letters"),
        (
            {"models": {"fed": {"kind": "federated", "set": {"strategy.nam": "x"}}}},
            "models, fed: .*strategy.nam: unknown",
        ),
        (
            {"models": {"local": {"kind": "local", "partitions": ["x"]}}},
            "models, local: expected partitions of the file",
        ),
        ({"attacks": {"bad": {"kind": "random", "site": 1, "models": ["local"]}}}, "expected federated models"),
        (
            {"attacks": {"bad": {"kind": "loud", "site": 1, "models": ["fedavg"]}}},
            "attacks, bad, kind: input should be",
        ),
    ],
)
def test_what_a_file_cannot_mean_is_refused(tmp_path: Path, cohorts: list[Path], change: dict, message: str) -> None:
    attacks = {"attacks": {}} if "models" in change else {}
    with pytest.raises(SweepError, match=message):
        load_sweep(written(tmp_path, plan(cohorts) | attacks | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"models": {"krum": {"kind": "federated", "set": {"strategy.name": "krum"}}}, "attacks": {}},
            "models, krum, on iid: krum with num_malicious=1 needs 5 sites or more, the federation has 2",
        ),
        (
            {"attacks": {"bad": {"kind": "random", "site": 3, "models": ["fedavg"]}}},
            "attacks, bad: expected a site from 1 to 2 of the partition iid, found 3",
        ),
        (
            {"partitions": {"iid": {"cohorts": "one", "scheme": "iid", "sites": 20}}, "attacks": {}},
            "partitions, iid: --scheme iid --sites 20",
        ),
        (
            {"models": {"all": {"kind": "centralized", "set": {"model.backbone_weights": "none.pt"}}}, "attacks": {}},
            "expected a file of weights, found none at .*none.pt",
        ),
        (
            {"models": {"all": {"kind": "centralized", "set": {"model.start": "none.pt"}}}, "attacks": {}},
            "model.start: expected a file of weights, found none at .*none.pt",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    tmp_path: Path, cohorts: list[Path], change: dict, message: str
) -> None:
    content = plan(cohorts)
    content["models"].pop("local")
    with pytest.raises(SweepError, match=message):
        make_cells(load_sweep(written(tmp_path, content | change)))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no such file; configs/sweeps has examples"):
        load_sweep(tmp_path / "none.yaml")
    (tmp_path / "text.yaml").write_text("just words")
    with pytest.raises(SweepError, match="expected seeds, partitions, models, found a str"):
        load_sweep(tmp_path / "text.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_project_can_be_read(path: Path) -> None:
    sweep = load_sweep(path, cohorts={"whole": [Path("elsewhere")]})
    assert sweep.cohorts["whole"] == (Path("elsewhere").resolve(),)
    kinds = {own.kind for own in sweep.plan.models.values()}
    assert "federated" in kinds
