"""What a site tells of its training part before the first round of a private run: noised, within the run's budget.

Each patient adds one short vector: of every measured variable that it is measured, its mean and its mean square; of
every label its share. The sum and noise leave. What is made of it afterwards spends nothing more.
"""

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import pandas as pd
from jaxtyping import Float

from client.cohort import open_cohort
from client.dataset import SampleSet
from client.normalisation import OwnScales, own_scales
from client.records import SiteRecords
from client.site_state import SiteState
from dipro_model.vocabulary import DEMOGRAPHICS, EHR_VARIABLES, NOT_MENTIONED, TASK_CLASSES, Task
from federation.agreement import Agreement
from federation.secure_noise import gaussian
from federation.site_statistics import CATEGORIES, MEASURES, Moments, SiteStatistics, items_of, label_outputs

USUAL_MEASURES: Mapping[str, tuple[float, float]] = {
    "age": (65.0, 16.0),
    "height": (169.0, 10.0),
    "weight": (82.0, 22.0),
}
"""Mean and spread of adults in intensive care: years, cm, kg."""
USUAL_SPREADS: Mapping[str, float] = {
    "Alanine aminotransferase": 100.0,
    "Albumin": 0.7,
    "Alkaline phosphate": 80.0,
    "Anion gap": 4.0,
    "Asparate aminotransferase": 120.0,
    "Bicarbonate": 5.0,
    "Bilirubin": 3.0,
    "Blood urea nitrogen": 20.0,
    "Chloride": 6.0,
    "Creatinine": 1.3,
    "Diastolic blood pressure": 14.0,
    "Fraction inspired oxygen": 0.2,
    "Glascow coma scale eye opening": 1.0,
    "Glascow coma scale motor response": 1.3,
    "Glascow coma scale verbal response": 1.7,
    "Glucose": 50.0,
    "Heart Rate": 17.0,
    "Height": 10.0,
    "Hematocrit": 5.0,
    "Hemoglobin": 1.8,
    "Magnesium": 0.3,
    "Mean blood pressure": 14.0,
    "Oxygen saturation": 3.0,
    "Partial pressure of carbon dioxide": 9.0,
    "Partial thromboplastin time": 20.0,
    "Platelets": 110.0,
    "Positive end-expiratory pressure": 3.0,
    "Potassium": 0.6,
    "Prothrombin time": 6.0,
    "Respiratory rate": 5.5,
    "Sodium": 5.0,
    "Systolic blood pressure": 20.0,
    "Temperature": 0.7,
    "Troponin-T": 1.0,
    "Urine output": 120.0,
    "Weight": 22.0,
    "White blood cell count": 6.0,
    "pH": 0.07,
}
"""About one standard deviation in adult intensive care, in the variable's unit, around the schema's fill value. Round
numbers from general clinical knowledge and of no patient's data: they only say where noise must be small."""

_CUT = 3.0
"""Values farther than so many spreads from the usual count as that far."""
_LABEL_WEIGHT = 3.0
"""Labels are few numbers and the loss is weighed by them; a variable's mean may be off by a part of its spread."""
_SD_RANGE = (0.5, 2.0)
"""Times the usual spread: no noise makes a deviation outside."""
_LEAST_PATIENTS = 1.0


def private_statistics(
    records: SiteRecords, task: Task, plain: SiteStatistics, *, noise: float, source: str
) -> SiteStatistics:
    """The statistics with every number noised: a patient moves the sum below the noise by at most 1, its length.

    noise: standard deviation in every entry of the sum. `plain` says what the site refuses and how its schema is, of
    its numbers nothing is used; `source` stands for the cohort in place of a hash of its exact statistics. What few
    patients have is told too, the noise hides it. Categories are not told, nothing is computed from them.
    """
    refused = {item: why for item, why in plain.withheld.items() if not why.startswith("fewer than ")}
    layout = _Layout(own=own_scales(open_cohort(records.path, verify_regions=False)), task=task)
    vectors = layout.vectors(records)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    total = (vectors / np.maximum(lengths, 1.0)).sum(axis=0) + gaussian(layout.size, noise)
    refused |= dict.fromkeys((f"demographics/{group}" for group in CATEGORIES), "a private run asks for none of it")
    told, labels = layout.read(total), layout.labels(total)
    kept = [item for item in items_of(task) if item not in refused]
    return replace(
        plain,
        source=source,
        ehr={name: told[f"ehr/{name}"] for name in EHR_VARIABLES if f"ehr/{name}" in kept},
        demographics={name: told[f"demographics/{name}"] for name in MEASURES if f"demographics/{name}" in kept},
        categories={},
        labels={output: labels[output] for output in label_outputs(task) if f"labels/{output}" in kept},
        withheld=refused,
    )


def untold_statistics(plain: SiteStatistics, *, source: str) -> SiteStatistics:
    """Which site this is and how its schema is, and not a number of its patients; `source` as in a noised one."""
    why = "the run reads values as its public start does"
    nothing = dict.fromkeys(items_of(plain.task), why)
    return replace(plain, source=source, ehr={}, demographics={}, categories={}, labels={}, withheld=nothing)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where each number lies in a patient's vector: three of each variable and measure, then shares of the labels."""

    own: OwnScales
    task: Task

    @property
    def usual(self) -> dict[str, tuple[float, float]]:
        """By item, mean and spread."""
        ehr = {f"ehr/{name}": (self.own.schema.fills[name], USUAL_SPREADS[name]) for name in EHR_VARIABLES}
        return ehr | {f"demographics/{name}": USUAL_MEASURES[name] for name in MEASURES}

    @property
    def size(self) -> int:
        return 3 * len(self.usual) + len(label_outputs(self.task)) * self.num_classes

    @property
    def num_classes(self) -> int:
        return len(TASK_CLASSES[self.task])

    def vectors(self, records: SiteRecords) -> Float[np.ndarray, "patient entry"]:
        """Of the site's training patients."""
        training = {number: stay.subject_id for number, stay in records.stays.items() if stay.split == "train"}
        patients = sorted(set(training.values()))
        means = pd.concat([_hourly(records, self, training), _measured(records, self, training)], axis=1)
        shares = _label_shares(records, self.task, self.num_classes)
        labels = pd.DataFrame.from_dict(shares, orient="index").reindex(patients).fillna(0.0)
        whole = np.concatenate([means.reindex(patients).fillna(0.0), _LABEL_WEIGHT * labels.to_numpy()], axis=1)
        assert whole.shape == (len(patients), self.size)
        return whole

    def read(self, total: Float[np.ndarray, " entry"]) -> dict[str, Moments]:
        """Of each variable and measure, from the noised sum."""
        found = {}
        for place, (name, (mean, spread)) in enumerate(self.usual.items()):
            count, first, second = total[3 * place : 3 * place + 3]
            count = max(float(count), _LEAST_PATIENTS)
            middle = float(np.clip(first / count, -1, 1))
            sd = _CUT * spread * float(np.sqrt(max(second / count - middle**2, 0.0)))
            sd = float(np.clip(sd, _SD_RANGE[0] * spread, _SD_RANGE[1] * spread))
            patients = max(1, round(count))
            found[name] = Moments(count=patients, mean=mean + _CUT * spread * middle, squares=patients * sd**2)
        return found

    def labels(self, total: Float[np.ndarray, " entry"]) -> dict[str, tuple[int, ...]]:
        """Labels of each class, in hundredths of a patient's weight, so that rounding does not matter; at least 1."""
        shares = total[3 * len(self.usual) :].reshape(-1, self.num_classes)
        counts = np.maximum(np.round(100 * shares / _LABEL_WEIGHT), 1).astype(int)
        return {output: tuple(row) for output, row in zip(label_outputs(self.task), counts.tolist(), strict=True)}


def _hourly(records: SiteRecords, layout: _Layout, training: Mapping[int, int]) -> pd.DataFrame:
    """By patient, three columns of each EHR variable, from the hours in which it was measured."""
    own, terms = layout.own, []
    for k, name in enumerate(EHR_VARIABLES):
        mean, spread = layout.usual[f"ehr/{name}"]
        value = f'("{name}" * {own.ehr[name].sd!r} + {own.ehr[name].mean!r} - {mean!r}) / {_CUT * spread!r}'
        cut, measured = f"greatest(-1, least(1, {value}))", f'FILTER (WHERE "{name}_mask")'
        terms += [f"(count(*) {measured} > 0)::INT AS n{k}", f"avg({cut}) {measured} AS m{k}"]
        terms += [f"avg(({cut}) * ({cut})) {measured} AS s{k}"]
    stays = pd.DataFrame({"stay_id": list(training), "subject_id": list(training.values())})
    with duckdb.connect() as connection:
        connection.register("stays", stays)
        found = connection.execute(
            f"SELECT subject_id, {', '.join(terms)} FROM read_parquet(?) JOIN stays USING (stay_id) "
            "GROUP BY subject_id",
            [str(records.path / "ehr_hourly.parquet")],
        ).df()
    return found.set_index("subject_id")


def _measured(records: SiteRecords, layout: _Layout, training: Mapping[int, int]) -> pd.DataFrame:
    """By patient, three columns of each measure, from the stays in which it is known."""
    rows: dict[int, list[np.ndarray]] = {}
    for number, subject in training.items():
        rows.setdefault(subject, []).append(records.stays[number].demographics)
    return pd.DataFrame.from_dict(
        {subject: list(_of_measures(np.stack(stays), layout)) for subject, stays in rows.items()}, orient="index"
    )


def _of_measures(stays: Float[np.ndarray, "stay demographic"], layout: _Layout) -> Iterator[float]:
    for name in MEASURES:
        own, (mean, spread) = layout.own.demographics[name], layout.usual[f"demographics/{name}"]
        scores = stays[:, DEMOGRAPHICS.index(name)].astype(np.float64)
        known = scores if name == "age" else scores[scores != 0]  # a missing height or weight is the z-score 0
        cut = np.clip((known * own.sd + own.mean - mean) / (_CUT * spread), -1, 1)
        yield from (1.0, cut.mean(), (cut**2).mean()) if len(cut) else (0.0, 0.0, 0.0)


def _label_shares(records: SiteRecords, task: Task, num_classes: int) -> dict[int, np.ndarray]:
    """By patient, the share of each class in its labels, of each output after the other; zeros where it has none."""
    samples = SampleSet([records], task, "train")
    labels: dict[int, list[np.ndarray]] = {}
    for (_, subject), row in zip(samples.patients, samples.labels.reshape(len(samples), -1), strict=True):
        labels.setdefault(subject, []).append(row)
    shares = {}
    for subject, rows in labels.items():
        table = np.stack(rows)  # [sample, output]
        counts = np.stack([(table == value).sum(axis=0) for value in range(num_classes)], axis=1)
        assert task is not Task.DISEASE_PROGRESSION or num_classes <= NOT_MENTIONED
        shares[subject] = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).ravel()
    return shares


_KEPT, _SALT = "statistics", "source_salt"


def kept_statistics(state: SiteState) -> SiteStatistics | None:
    """What the site told in this run already: told again it spends nothing, and the agreement stays the same."""
    kept = state.find(_KEPT)
    return None if kept is None else SiteStatistics.from_json(kept.tobytes().decode())


def keep_statistics(state: SiteState, statistics: SiteStatistics) -> None:
    state.keep(_KEPT, np.frombuffer(statistics.to_json().encode(), np.uint8))


def hidden_source(records: SiteRecords, state: SiteState) -> str:
    """What stands for the cohort's exact statistics in a private run: a hash that only the site can make."""
    salt = state.find(_SALT)
    if salt is None:
        salt = np.frombuffer(secrets.token_bytes(32), np.uint8)
        state.keep(_SALT, salt)
    own = own_scales(open_cohort(records.path, verify_regions=False)).source
    return hashlib.sha256(salt.tobytes() + own.encode()).hexdigest()


def with_own_source(agreement: Agreement, records: SiteRecords, state: SiteState) -> Agreement:
    """The agreement as the site's records compare it: where it names the hidden source, with the cohort's own."""
    if agreement.sources.get(records.name) != hidden_source(records, state):
        return agreement
    own = own_scales(open_cohort(records.path, verify_regions=False)).source
    return replace(agreement, sources={**agreement.sources, records.name: own})
