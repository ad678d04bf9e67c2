"""A site's policy: what it refuses, and that a typo refuses everything."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import torch

from client.app import _bound_gpu, app
from client.policy import PolicyError, SitePolicy, load_policy
from federation.messages import MessageError
from federation.run_folder import read_run
from federation.settings import RunFiles, to_run_config
from server.app import coordinate
from simulation.in_process import InProcessGrid
from tests.make_cohort import write_cohort
from tests.small_run import small_settings

NOON = datetime(2026, 1, 1, 12, 0)


def _load(folder: Path, text: str) -> SitePolicy:
    path = folder / "policy.yaml"
    path.write_text(text)
    return load_policy(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [length_of_stay]", "allows the tasks length_of_stay, asked was mortality"),
        ("minimum_cell: 11", "minimum_cell of 11 or more, found 10"),
        ("minimum_patients: 31", "31 training patients of its own"),
        ('hours: ["20:00-06:00", "07:30-11:59"]', "20:00-06:00, 07:30-11:59 by its clock, not now"),
    ],
)
def test_what_is_not_allowed_is_refused_with_what_is(tmp_path: Path, text: str, message: str) -> None:
    settings = small_settings("federation.minimum_cell=10")
    with pytest.raises(PolicyError, match=message):
        _load(tmp_path, text).check(settings, 30, NOON)
    _load(tmp_path, "").check(settings, 30, NOON)


PRIVATE = (
    *("patient_privacy.enabled=true", "patient_privacy.noise_multiplier=2.0", "training.batch_norm=frozen"),
    *("training.accumulated_batches=1", "federation.minimum_cell=10"),
)


@pytest.mark.parametrize(
    ("text", "delta", "most"),
    [("", 1e-3, 999), ("largest_epsilon: 8.0\ndelta: 0.01", 1e-3, 99), ("delta: 0.01", 1e-3, 999)],
)
def test_a_delta_is_below_one_over_the_sites_patients(tmp_path: Path, text: str, delta: float, most: int) -> None:
    """With a larger one a mechanism may tell everything of one patient; without a budget the site's own is not used."""
    policy, settings = _load(tmp_path, text), small_settings(*PRIVATE, f"patient_privacy.delta={delta}")
    policy.check(settings, most, NOON)
    words = f"too many training patients for this delta: .*found {max(delta, 0.01 if 'epsilon' in text else 0):g}"
    with pytest.raises(PolicyError, match=words):
        policy.check(settings, most + 1, NOON)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [("08:00-17:00", ("08:00", "16:59"), ("07:59", "17:00")), ("20:00-06:00", ("20:00", "05:59"), ("19:59", "06:00"))],
)
def test_hours_may_pass_midnight(tmp_path: Path, window: str, inside: tuple, outside: tuple) -> None:
    policy, settings = _load(tmp_path, f'hours: ["{window}"]'), small_settings("federation.minimum_cell=10")
    for hour in inside:
        policy.check(settings, 30, datetime.fromisoformat(f"2026-01-01T{hour}"))
    for hour in outside:
        with pytest.raises(PolicyError):
            policy.check(settings, 30, datetime.fromisoformat(f"2026-01-01T{hour}"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("task: [mortality]", "task"),
        ("tasks: [mortalty]", "tasks"),
        ("tasks: mortality", "tasks"),
        ("minimum_cell: ten", "minimum_cell"),
        ("minimum_patients: 0", "minimum_patients"),
        ("gpu_share: 2", "gpu_share"),
        ('hours: ["8 to 5"]', "hours"),
        ("[1, 2]", "the file"),
        ("a: b: c", "no YAML"),
    ],
)
def test_a_typo_refuses_everything_and_names_its_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(PolicyError, match=place) as error:
        _load(tmp_path, text)
    assert str(error.value).endswith("nothing is allowed")
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "none.yaml")


def _run(folder: Path, policy: str, sites: str = "") -> Path:
    """A federated run in which the site `north` has this policy; `sites` is where the server says that they are."""
    cohorts = [write_cohort(folder / name, num_patients=16, num_images=2) for name in ("north", "south")]
    (folder / "policy.yaml").write_text(policy)
    nodes = [{"site": each.name, "cohort": str(each), "folder": str(folder / "own" / each.name)} for each in cohorts]
    nodes[0]["policy"] = str(folder / "policy.yaml")
    settings = small_settings("federation.rounds=1")
    grid = InProcessGrid(app, to_run_config(settings, RunFiles(folder=str(folder / "run"), sites=sites)), nodes)
    coordinate(grid, settings, folder / "run")
    return folder / "run"


def test_metrics_that_may_not_leave_are_undefined_to_the_server(tmp_path: Path) -> None:
    results = read_run(_run(tmp_path, "minimum_cell: 1\nmetrics: [auprc]")).more["results"]
    for part in results["north"].values():
        assert part["auroc"] is None
        assert part["brier"] is None
        assert part["auprc"] is not None
    assert all(value is not None for part in results["south"].values() for value in part.values())


def test_a_refusal_is_in_the_audit_logs_of_both_sides(tmp_path: Path) -> None:
    with pytest.raises(MessageError, match=r"this site's policy asks for federation\.minimum_cell of 5 or more"):
        _run(tmp_path, "minimum_cell: 5")
    for path in (tmp_path / "own" / "north" / "audit.jsonl", tmp_path / "run" / "audit.jsonl"):
        last = json.loads(path.read_text().splitlines()[-1])
        assert "minimum_cell of 5 or more" in last["reason"]


def test_the_server_leads_no_site_to_another_folder(tmp_path: Path) -> None:
    """A simulation tells its nodes where their cohorts are; a node that has one of its own does not listen."""
    elsewhere = tmp_path / "sites.json"
    other = {"name": "other", "cohort": str(tmp_path / "secret"), "subjects": None, "gaps": {}, "folder": str(tmp_path)}
    elsewhere.write_text(json.dumps([other, other]))
    record = read_run(_run(tmp_path, "minimum_cell: 1\n", sites=str(elsewhere)))
    assert record.sites == ("north", "south")


def test_a_share_of_the_gpu_bounds_what_torch_takes_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[tuple[float, str]] = []
    bound = "torch.cuda.set_per_process_memory_fraction"
    monkeypatch.setattr(bound, lambda share, device: bounds.append((share, str(device))))
    _bound_gpu(SitePolicy(gpu_share=0.25), torch.device("cpu"))
    _bound_gpu(SitePolicy(), torch.device("cuda:1"))
    assert not bounds
    _bound_gpu(SitePolicy(gpu_share=0.25), torch.device("cuda:1"))
    assert bounds == [(0.25, "cuda:1")]
