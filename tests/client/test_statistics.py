"""What a site discloses against its raw records, the agreement of two real preparations against pooled raw tables."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from client.cohort import Cohort, CohortError, open_cohort
from client.dataset import SampleSet
from client.normalisation import agreed_records, agreed_stays, check_agreed, own_scales
from client.prepare.demographics import DemographicStatistics, body_sizes, raw_demographics
from client.prepare.ehr import Statistic
from client.prepare.pipeline import prepare, prepare_ehr
from client.prepare.profile import load_profile
from client.prepare.raw import connect
from client.prepare.rejections import Rejections
from client.prepare.stays import read_stays
from client.records import SiteRecords, SiteSpec
from client.statistics import site_statistics
from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, NOT_MENTIONED, Task
from federation.agreement import Agreement, agree
from federation.site_statistics import CATEGORIES, MEASURES, AgreementError, SiteStatistics
from simulation.synthesize.generate import synthesize
from tests.make_cohort import reseal, write_cohort

RAW = ("mimiciv", "mimic-cxr-jpg", "chest-imagenome")


class TwoHospitals:
    """Two synthetic hospitals prepared apart, and their raw tables prepared together under the same split."""

    def __init__(self, folder: Path) -> None:
        synthetic = synthesize(folder / "raw", hospitals=2, patients=24, seed=3, image_pixels=64)
        raw = [row.folder for row in synthetic]
        self.cohorts = [prepare(*(each / part for part in RAW), folder / each.name, workers=1) for each in raw]
        self.records = [
            SiteRecords(SiteSpec(name=name, cohort=cohort.path), crop_pixels=32)
            for name, cohort in zip(("alpha", "beta"), self.cohorts, strict=True)
        ]
        self._prepare_together(folder, [each / "mimiciv" for each in raw])

    def _prepare_together(self, folder: Path, raw: list[Path]) -> None:
        """Statistics, hours and demographics of all stays as one hospital's; images play no part in them."""
        together = folder / "together"
        for part in ("hosp", "icu"):
            (together / part).mkdir(parents=True)
            for table in (raw[0] / part).iterdir():
                _join_tables([each / part / table.name for each in raw], together / part / table.name)
        profile, rejections = load_profile("corrected"), Rejections(strict=False)
        split = pd.concat([cohort.stays for cohort in self.cohorts]).set_index("stay_id").split
        (folder / "scratch").mkdir()
        with connect(folder / "scratch", threads=1) as connection:
            stays = read_stays(connection, together, profile.rules.stays, rejections)
            stays = stays.assign(split=split.loc[stays.stay_id].to_numpy())
            found = prepare_ehr(connection, together, stays, folder, profile, rejections)
            self.raw_demographics = raw_demographics(
                stays, body_sizes(connection, profile.rules.demographics), profile.rules.demographics, rejections
            )
        self.stays: pd.DataFrame = stays
        self.statistics: dict[str, Statistic] = found[1]
        self.demographics: pd.DataFrame = found[2].set_index("stay_id")
        self.scale: DemographicStatistics = found[3]
        self.hourly: pd.DataFrame = pq.read_table(folder / "ehr_hourly.parquet").to_pandas().set_index("stay_id")


def _join_tables(sources: list[Path], target: Path) -> None:
    """One table below the other, the header once."""
    assert {source.suffix for source in sources} <= {".gz", ".csv"}
    reader = gzip.open if target.suffix == ".gz" else open
    with reader(target, "wt") as out:
        for number, source in enumerate(sources):
            with reader(source, "rt") as file:
                header = file.readline()
                out.write("" if number else header)
                shutil.copyfileobj(file, out)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> TwoHospitals:
    return TwoHospitals(tmp_path_factory.mktemp("hospitals"))


@pytest.fixture(scope="module")
def agreement(hospitals: TwoHospitals) -> Agreement:
    sites = [site_statistics(each, Task.MORTALITY, minimum_cell=1) for each in hospitals.records]
    return agree([SiteStatistics.from_json(each.to_json()) for each in sites])


def test_agreed_statistics_are_those_of_the_pooled_raw_tables(hospitals, agreement) -> None:
    assert agreement.left_out == ()
    for name, expected in hospitals.statistics.items():
        found = agreement.ehr[name]
        assert found.num_values == expected.num_values
        assert found.mean == pytest.approx(expected.mean, rel=1e-9)
        assert found.sd == pytest.approx(expected.sd, rel=1e-9)
    measured = [name for name in EHR_VARIABLES if agreement.ehr[name].num_values]
    assert len(measured) == len(EHR_VARIABLES)
    apart = [cohort.statistics["ehr"]["Albumin"]["num_values"] for cohort in hospitals.cohorts]
    assert 0 in apart
    assert sum(apart) > 0


def test_agreed_hours_are_those_of_the_pooled_raw_tables(hospitals, agreement) -> None:
    """Filled hours of variables that a hospital never charts, too."""
    compared = 0
    for records, cohort in zip(hospitals.records, hospitals.cohorts, strict=True):
        agreed = agreed_stays(records.stays, own_scales(cohort), agreement, site=records.name)
        assert list(agreed) == list(records.stays)
        for number, stay in agreed.items():
            expected = hospitals.hourly.loc[[number], list(EHR_VARIABLES)].to_numpy()
            assert stay.ehr.dtype == np.float32
            np.testing.assert_allclose(stay.ehr, expected, rtol=1e-5, atol=1e-5)
            compared += stay.ehr.size
            assert stay.image_hours is records.stays[number].image_hours
    assert compared > 50_000


def usual_values(frame: pd.DataFrame, name: str) -> np.ndarray:
    """The rule of the preparation, written out."""
    values = frame[name].dropna().to_numpy()
    first, third = np.quantile(values, [0.25, 0.75])
    margin = 1.5 * (third - first)
    return values[(values >= first - margin) & (values <= third + margin)]


def test_records_are_copied_not_changed(hospitals, agreement) -> None:
    """Agreeing twice gives the same as once, though the records are kept between messages."""
    records = hospitals.records[1]
    before = {number: stay.ehr.copy() for number, stay in records.stays.items()}
    once, twice = (SampleSet([agreed_records(records, agreement)], Task.MORTALITY, "train") for _ in range(2))
    assert all((records.stays[number].ehr == ehr).all() for number, ehr in before.items())
    assert torch.equal(once[0].ehr, twice[0].ehr)
    unmapped = SampleSet([records], Task.MORTALITY, "train")[0]
    assert not torch.equal(once[0].ehr, unmapped.ehr)
    assert torch.equal(once[0].regions, unmapped.regions)


def test_measures_are_pooled_over_what_each_hospital_finds_usual(hospitals, agreement) -> None:
    """And equal to pooled preparation where that finds the same values usual."""
    raw = hospitals.raw_demographics.merge(hospitals.stays[["stay_id", "split"]], on="stay_id")
    train, same = raw[raw.split == "train"], []
    for name in MEASURES:
        parts = [train[train.stay_id.isin(cohort.stays.stay_id)] for cohort in hospitals.cohorts]
        values, found = np.concatenate([usual_values(part, name) for part in parts]), agreement.demographics[name]
        assert found.num_values == len(values)
        assert found.mean == pytest.approx(values.mean(), rel=1e-9)
        assert found.sd == pytest.approx(values.std(ddof=1), rel=1e-9)
        if sorted(values) == sorted(usual_values(train, name)):
            same.append(name)
            assert found.mean == pytest.approx(hospitals.scale.mean[name], rel=1e-9)
            assert found.sd == pytest.approx(hospitals.scale.sd[name], rel=1e-9)
    assert same


def test_agreed_demographics_are_scaled_alike(hospitals, agreement) -> None:
    raw = hospitals.raw_demographics.set_index("stay_id")
    for records, cohort in zip(hospitals.records, hospitals.cohorts, strict=True):
        agreed = agreed_stays(records.stays, own_scales(cohort), agreement, site=records.name)
        for number, stay in agreed.items():
            for name in MEASURES:
                value, scale = raw.loc[number, name], agreement.demographics[name]
                expected = (value - scale.mean) / scale.sd
                assert stay.demographics[DEMOGRAPHICS.index(name)] == pytest.approx(expected, abs=1e-5)
            assert (stay.demographics[3:] == records.stays[number].demographics[3:]).all()


def test_category_and_label_counts_are_those_of_the_tables(hospitals, agreement) -> None:
    train = [cohort.stays.loc[cohort.stays.split == "train", "stay_id"] for cohort in hospitals.cohorts]
    for column in (name for columns in CATEGORIES.values() for name in columns):
        expected = sum(
            cohort.demographics.loc[cohort.demographics.stay_id.isin(stays), column].sum()
            for cohort, stays in zip(hospitals.cohorts, train, strict=True)
        )
        assert agreement.categories[column] == expected
    labels = pd.concat([cohort.samples_mortality for cohort in hospitals.cohorts])
    expected = labels.loc[labels.split == "train", "label"].value_counts()
    assert agreement.labels["mortality"] == (expected[0], expected[1])


@pytest.mark.parametrize("task", [Task.DISEASE_PROGRESSION, Task.LENGTH_OF_STAY])
def test_label_counts_of_the_other_tasks(hospitals, task: Task) -> None:
    found = site_statistics(hospitals.records[0], task, minimum_cell=1).labels
    cohort: Cohort = hospitals.cohorts[0]
    if task is Task.LENGTH_OF_STAY:
        labels = cohort.samples_length_of_stay
        counted = np.bincount(labels.loc[labels.split == "train", "label"], minlength=4)
        assert found == {"length_of_stay": tuple(counted)}
        return
    train = set(cohort.stays.loc[cohort.stays.split == "train", "stay_id"])
    pairs = cohort.pairs[cohort.pairs.stay_id.isin(train)]
    for disease in DISEASES:
        values = pairs.loc[pairs[disease] != NOT_MENTIONED, disease]
        assert found[disease] == tuple(np.bincount(values, minlength=3))


def test_agreeing_with_oneself_changes_nothing(hospitals) -> None:
    records, cohort = hospitals.records[0], hospitals.cohorts[0]
    alone = agree([site_statistics(records, Task.MORTALITY, minimum_cell=1)])
    for name, scale in own_scales(cohort).ehr.items():
        assert alone.ehr[name] == scale
    parts = [
        site_statistics(SimpleNamespace(**vars(records) | {"name": name}), Task.MORTALITY, minimum_cell=1)  # type: ignore
        for name in ("one", "two")
    ]
    assert agree(parts).ehr == alone.ehr


# The minimum cell and refusal, on cohorts written by hand.


def write_statistics(folder: Path, **changes: dict) -> Path:
    """Statistics that the z-scores of a cohort written by hand could have been made with."""
    ehr = {
        name: {"mean": 5.0 + k, "sd": 1.0 + k, "num_values": 40, "fill": 4.0} for k, name in enumerate(EHR_VARIABLES)
    }
    demographics = {"mean": {"age": 60.0, "height": 170.0, "weight": 80.0}, "sd": dict.fromkeys(MEASURES, 10.0)}
    content = {"ehr": ehr, "demographics": demographics} | changes
    (folder / "statistics.json").write_text(json.dumps(content))
    reseal(folder)
    return folder


def change_table(folder: Path, name: str, change) -> None:
    table = pq.read_table(folder / f"{name}.parquet")
    frame = change(table.to_pandas())
    pq.write_table(
        type(table).from_pandas(frame, schema=table.schema, preserve_index=False), folder / f"{name}.parquet"
    )
    reseal(folder)


def records_of(folder: Path, name: str = "alpha") -> SiteRecords:
    return SiteRecords(SiteSpec(name=name, cohort=folder), crop_pixels=16)


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """24 patients, 12 of them to train with, 6 of these dead."""
    return write_statistics(write_cohort(tmp_path / "cohort", num_patients=24, num_images=2))


def measured_by(folder: Path, variable: str, num_patients: int) -> None:
    """Let only so many training patients have a measured hour of a variable."""
    cohort = open_cohort(folder)
    train = cohort.stays[cohort.stays.split == "train"]
    chosen = train.stay_id.head(num_patients)

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        others = frame.stay_id.isin(train.stay_id) & ~frame.stay_id.isin(chosen)
        frame.loc[others, f"{variable}_mask"] = False
        return frame

    change_table(folder, "ehr_hourly", change)


def test_an_item_of_few_patients_is_withheld_and_named(by_hand: Path) -> None:
    measured_by(by_hand, "Albumin", 9)
    measured_by(by_hand, "pH", 10)
    found = site_statistics(records_of(by_hand), Task.MORTALITY)
    few = "fewer than 10 training patients"
    assert found.withheld["ehr/Albumin"] == few
    assert "Albumin" not in found.ehr
    assert found.ehr["pH"].count == 40
    # Six training patients died: the survivors would give them away.
    assert found.withheld["labels/mortality"] == few
    assert found.labels == {}
    assert any(few in line and "ehr/Albumin" in line for line in agree([found]).report())
    everything = site_statistics(records_of(by_hand), Task.MORTALITY, minimum_cell=1)
    assert everything.withheld == {}
    assert everything.labels == {"mortality": (6, 6)}


def test_patients_are_counted_not_stays_or_hours(by_hand: Path) -> None:
    assert "Albumin" in site_statistics(records_of(by_hand), Task.MORTALITY).ehr

    def same_patient(frame: pd.DataFrame) -> pd.DataFrame:
        train = frame.split == "train"
        frame.loc[train, "subject_id"] = np.arange(train.sum()) % 4 + 1
        return frame

    change_table(by_hand, "stays", same_patient)
    found = site_statistics(records_of(by_hand), Task.MORTALITY)
    assert found.ehr == {}
    assert {item for item in found.withheld if item.startswith("demographics")} == {
        f"demographics/{name}" for name in (*MEASURES, *CATEGORIES)
    }


def test_a_site_may_refuse_items(by_hand: Path) -> None:
    found = site_statistics(
        records_of(by_hand), Task.MORTALITY, minimum_cell=1, withheld=["labels", "ehr/Albumin", "demographics/gender"]
    )
    assert found.withheld == dict.fromkeys(
        ("ehr/Albumin", "demographics/gender", "labels/mortality"), "the site refuses"
    )
    assert "gender_F" not in found.categories
    assert agree([found]).left_out == ("ehr/Albumin",)
    with pytest.raises(ValueError, match="found ehr/Sodium chloride"):
        site_statistics(records_of(by_hand), Task.MORTALITY, withheld=["ehr/Sodium chloride"])
    with pytest.raises(ValueError, match="minimum cell of 1"):
        site_statistics(records_of(by_hand), Task.MORTALITY, minimum_cell=0)


def test_a_missing_height_is_the_agreed_mean_but_every_age_is_known(by_hand: Path, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", num_patients=24, num_images=2, seed=1, first_subject=500)
    means = {"age": 70.0, "height": 160.0, "weight": 90.0}
    write_statistics(other, demographics={"mean": means, "sd": dict.fromkeys(MEASURES, 5.0)})
    records = [records_of(by_hand), records_of(other, "beta")]
    agreement = agree([site_statistics(each, Task.MORTALITY, minimum_cell=1) for each in records])
    stays = {
        number: replace(stay, demographics=np.zeros_like(stay.demographics))
        for number, stay in records[1].stays.items()
    }
    agreed = agreed_stays(stays, own_scales(open_cohort(other)), agreement, site="beta")
    age = agreement.demographics["age"]
    for stay in agreed.values():
        assert stay.demographics[0] == pytest.approx((70.0 - age.mean) / age.sd, rel=1e-6)
        assert (stay.demographics[1:] == 0).all()


def test_a_variable_that_is_left_out_is_zero_in_training(by_hand: Path) -> None:
    records = records_of(by_hand)
    refusing = site_statistics(records, Task.MORTALITY, minimum_cell=1, withheld=["ehr/Albumin"])
    agreed = agreed_stays(records.stays, own_scales(open_cohort(by_hand)), agree([refusing]), site="alpha")
    place = EHR_VARIABLES.index("Albumin")
    for number, stay in agreed.items():
        assert (stay.ehr[:, place] == 0).all()
        others = np.arange(len(EHR_VARIABLES)) != place
        np.testing.assert_array_equal(stay.ehr[:, others], records.stays[number].ehr[:, others])
        assert (records.stays[number].ehr[:, place] != 0).any()


def test_a_deviation_of_one_is_a_spread_only_where_values_differ(by_hand: Path) -> None:
    """The preparation writes 1 where nothing varies, so that nothing is divided by 0."""
    ehr = json.loads((by_hand / "statistics.json").read_text())["ehr"]
    ehr["Albumin"] |= {"sd": 1.0}
    ehr["pH"] |= {"sd": 1.0}
    write_statistics(by_hand, ehr=ehr)
    change_table(by_hand, "ehr_hourly", lambda frame: frame.assign(Albumin=np.float32(0)))
    found = site_statistics(records_of(by_hand), Task.MORTALITY)
    assert found.ehr["Albumin"].squares == 0.0
    assert found.ehr["pH"].squares == 40.0


def test_an_agreement_of_other_data_is_refused(by_hand: Path) -> None:
    records, own = records_of(by_hand), own_scales(open_cohort(by_hand))
    found = site_statistics(records, Task.MORTALITY, minimum_cell=1)
    check_agreed("alpha", own, agree([found]))
    with pytest.raises(AgreementError, match=r"alpha.*another preparation"):
        check_agreed("alpha", replace(own, source="0"), agree([found]))
    with pytest.raises(AgreementError, match=r"beta.*none"):
        agreed_stays(records.stays, own, agree([found]), site="beta")
    other = replace(own.schema, fills={**own.schema.fills, "Temperature": 98.6})
    with pytest.raises(AgreementError, match="another schema"):
        check_agreed("alpha", replace(own, schema=other), agree([found]))


def test_a_cohort_without_its_statistics_is_refused_by_what_is_missing(by_hand: Path) -> None:
    write_statistics(by_hand, demographics={})
    with pytest.raises(CohortError, match=r"statistics.json.*demographics, mean, age"):
        site_statistics(records_of(by_hand), Task.MORTALITY)
