"""A manifest comes back as it was, fits its own cohort only, and what was changed in it is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from PIL import Image

from client.app import _simulated
from client.cohort import Cohort, open_cohort
from client.gaps import Gaps
from dipro_model.vocabulary import Task
from federation.settings import RunFiles
from simulation.flower import write_sites
from simulation.partition.choose import choose_partitioned_sites, keep_partition
from simulation.partition.draw import draw_partition
from simulation.partition.manifest import (
    MANIFEST,
    PICTURE,
    Partition,
    PartitionError,
    read_partition,
    site_specs,
    write_partition,
)
from simulation.partition.picture import draw_partition_picture
from simulation.partition.schemes import Scheme, SchemeName
from tests.make_cohort import write_cohort

SCHEME = Scheme(name=SchemeName.MODALITY_GAPS, num_sites=4)


@pytest.fixture(scope="module")
def partition(cohort: Cohort) -> Partition:
    return draw_partition([cohort], SCHEME, Task.MORTALITY, seed=1)


def test_what_is_written_is_what_is_read(partition: Partition, tmp_path: Path) -> None:
    path = write_partition(partition, tmp_path / "new" / "folder")
    assert read_partition(path) == read_partition(path.parent) == partition
    facts = json.loads(path.read_text())
    assert (facts["scheme"], facts["seed"], facts["draw"], facts["task"]) == ("modality_gaps", 1, 1, "mortality")
    assert facts["parameters"] == {"num_sites": 4, "min_patients": 1}
    assert str(tmp_path) not in path.read_text()


def test_a_manifest_gives_the_sites_that_the_scheme_drew(folder: Path, partition: Partition, tmp_path: Path) -> None:
    write_partition(partition, tmp_path)
    drawn, _ = choose_partitioned_sites([folder], Task.MORTALITY, num_sites=4, seed=1, scheme=SCHEME)
    read, same = choose_partitioned_sites([folder], Task.MORTALITY, manifest=tmp_path)
    assert drawn == read
    assert same == partition
    alone, none = choose_partitioned_sites([folder], Task.MORTALITY, num_sites=4, seed=1)
    assert none is None
    assert [spec.subjects for spec in alone] == [spec.subjects for spec in read]
    for clash in ({"num_sites": 2}, {"scheme": SCHEME}):
        with pytest.raises(PartitionError, match="leave --sites and --scheme out"):
            choose_partitioned_sites([folder], Task.MORTALITY, manifest=tmp_path, **clash)


def test_another_cohort_is_refused(cohort: Cohort, partition: Partition, tmp_path: Path) -> None:
    other = open_cohort(write_cohort(tmp_path / "whole", num_patients=48, num_images=3, seed=6))
    for cohorts in ([other], [cohort, other]):
        with pytest.raises(PartitionError, match=r"expected the cohorts that were split \(whole\).*does not fit"):
            site_specs(partition, cohorts, source="here")


def _swap(facts: dict[str, Any]) -> None:
    first, second = facts["sites"][0]["patients"], facts["sites"][1]["patients"]
    first["train"][0] = second["train"][0]


def _move(facts: dict[str, Any]) -> None:
    patients = facts["sites"][0]["patients"]
    patients["test"].append(patients["train"].pop())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_swap, "found 0 in another split or unknown and 1 more than once"),
        (_move, "found 1 in another split or unknown and 0 more than once"),
        (lambda facts: facts["sites"][0]["patients"]["val"].append(7), "found 1 in another split or unknown"),
        (lambda facts: facts.update(schema_version=9), "schema version 1, found 9"),
        (lambda facts: facts.update(sheme="iid"), "sheme: unexpected"),
        (lambda facts: facts["sites"][0]["gaps"].update(max_images=1), "2 or more images of a stay"),
        (lambda facts: facts.update(draw="one"), "draw: input should be a valid integer"),
    ],
)
def test_a_changed_manifest_is_refused_by_what_was_changed(
    cohort: Cohort, partition: Partition, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = write_partition(partition, tmp_path)
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(PartitionError, match=words) as caught:
        site_specs(read_partition(tmp_path), [cohort], source=path)
    assert not any(str(subject) in str(caught.value).split() for subject in cohort.stays.subject_id)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="run `dipro-fed partition`"):
        read_partition(tmp_path)
    for text in ("no JSON", "[]", '{"schema_version": 1}'):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(PartitionError, match=r"expected JSON|schema version 1, found None|field required"):
            read_partition(tmp_path)


def test_a_simulated_node_gets_the_patients_and_gaps_of_its_site(
    cohort: Cohort, partition: Partition, tmp_path: Path
) -> None:
    specs = site_specs(partition, [cohort], source="here")
    write_sites(specs, tmp_path)
    files = RunFiles(folder=str(tmp_path), sites=str(tmp_path / "sites.json"))
    for number, spec in enumerate(specs):
        context = Context(
            run_id=1, node_id=number, node_config={"partition-id": number}, state=RecordDict(), run_config={}
        )
        found, own = _simulated(context, files)
        assert found == spec
        assert own == tmp_path / "sites" / spec.name
    assert specs[2].gaps == Gaps(max_images=2)


def test_a_picture_of_many_sites_has_narrow_rows(partition: Partition, tmp_path: Path) -> None:
    many = replace(partition, sites=partition.sites * 10)
    few_path = draw_partition_picture(partition, tmp_path / "few.png")
    many_path = draw_partition_picture(many, tmp_path / "many.png")
    with Image.open(few_path) as few_sites, Image.open(many_path) as many_sites:
        assert few_sites.height < many_sites.height < 3 * few_sites.height


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("num_sites", [1, 4])
def test_manifest_and_picture_are_written_for_every_task(
    cohort: Cohort, tmp_path: Path, task: Task, num_sites: int
) -> None:
    drawn = draw_partition([cohort], Scheme(num_sites=num_sites), task, seed=0)
    assert keep_partition(drawn, tmp_path) == [tmp_path / MANIFEST, tmp_path / PICTURE]
    with Image.open(tmp_path / PICTURE) as picture:
        assert picture.width > 1500
        assert picture.convert("L").getextrema() != (255, 255)
