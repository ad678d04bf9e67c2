"""Agreed statistics against those of all raw values together, the map of z-scores, and sites that do not fit."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipro_model.losses import class_weights_from_counts
from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, TASK_CLASSES, Task
from federation.agreement import Agreement, Scale, affine, agree, pool_moments
from federation.site_statistics import CATEGORIES, MEASURES, AgreementError, Moments, Schema, SiteStatistics, items_of

SCHEMA = Schema(
    variables=EHR_VARIABLES,
    columns=DEMOGRAPHICS,
    windows={"stay_hours": 48.0, "stay_image_hours": 48.0, "pair_hours_before": 1.0, "pair_hours_after": 0.0},
    fills={name: 10.0 + k for k, name in enumerate(EHR_VARIABLES)},
)


def moments(values: np.ndarray) -> Moments:
    """By the plain definition."""
    if not len(values):
        return Moments(count=0, mean=0.0, squares=0.0)
    return Moments(count=len(values), mean=float(np.mean(values)), squares=float(((values - values.mean()) ** 2).sum()))


def raw_values(seed: int, *, size: int = 300) -> dict[str, np.ndarray]:
    """Values of each variable and measure at one hospital: other scales, other numbers, some never measured."""
    generator = np.random.default_rng(seed)
    values = {}
    for k, name in enumerate((*EHR_VARIABLES, *MEASURES)):
        number = 0 if k == seed else int(generator.integers(2, size))
        values[name] = generator.normal(10.0 ** (k % 4) + seed, 0.01 + k % 3, number)
    return values


def site(name: str, values: dict[str, np.ndarray], task: Task = Task.MORTALITY, **changes: object) -> SiteStatistics:
    """A site that discloses everything."""
    outputs = DISEASES if task is Task.DISEASE_PROGRESSION else (task.value,)
    whole = SiteStatistics(
        site=name,
        task=task,
        source=f"source of {name}",
        profile="corrected",
        minimum_cell=10,
        schema=SCHEMA,
        ehr={variable: moments(values[variable]) for variable in EHR_VARIABLES},
        demographics={measure: moments(values[measure]) for measure in MEASURES},
        categories={column: 11 for columns in CATEGORIES.values() for column in columns},
        labels={output: tuple(20 + k for k in range(len(TASK_CLASSES[task]))) for output in outputs},
        withheld={},
    )
    return replace(whole, **changes)  # pyright: ignore[reportArgumentType]


def without(statistics: SiteStatistics, item: str, reason: str = "the site refuses") -> SiteStatistics:
    """The same site, which withholds one item."""
    kind, _, name = item.partition("/")
    names = CATEGORIES.get(name, (name,))
    field = "categories" if name in CATEGORIES else kind
    kept = {key: value for key, value in getattr(statistics, field).items() if key not in names}
    return replace(statistics, **{field: kept, "withheld": {**statistics.withheld, item: reason}})


@pytest.fixture
def raw() -> dict[str, dict[str, np.ndarray]]:
    return {name: raw_values(k) for k, name in enumerate(("alpha", "beta", "gamma"))}


def test_statistics_are_those_of_all_values_together(raw) -> None:
    agreement = agree([site(name, values) for name, values in raw.items()])
    for name in EHR_VARIABLES:
        values = np.concatenate([each[name] for each in raw.values()])
        assert agreement.ehr[name].mean == pytest.approx(values.mean(), rel=1e-9)
        assert agreement.ehr[name].sd == pytest.approx(values.std(), rel=1e-9)
        assert agreement.ehr[name].num_values == len(values)
    for name in MEASURES:
        values = np.concatenate([each[name] for each in raw.values()])
        assert agreement.demographics[name].mean == pytest.approx(values.mean(), rel=1e-9)
        assert agreement.demographics[name].sd == pytest.approx(values.std(ddof=1), rel=1e-9)
    assert agreement.categories["gender_F"] == 33
    assert agreement.labels == {"mortality": (60, 63)}
    assert agreement.report() == []


def test_moments_from_a_mean_and_a_deviation_of_twelve_digits_suffice(raw) -> None:
    """As statistics.json keeps them."""
    parts, name = [], "Platelets"
    for values in (each[name] for each in raw.values()):
        mean, sd = float(f"{values.mean():.12g}"), float(f"{values.std():.12g}")
        parts.append(Moments(count=len(values), mean=mean, squares=len(values) * sd**2))
    pooled, values = pool_moments(parts), np.concatenate([each[name] for each in raw.values()])
    assert pooled.mean == pytest.approx(values.mean(), rel=1e-11)
    assert math.sqrt(pooled.squares / pooled.count) == pytest.approx(values.std(), rel=1e-11)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    parts=st.lists(st.lists(st.floats(-1e3, 1e3), max_size=8), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, 1e6]),
)
def test_pooled_moments_are_those_of_the_union(parts: list[list[float]], offset: float) -> None:
    arrays = [np.array(part, dtype=float) + offset for part in parts]
    pooled, union = pool_moments(map(moments, arrays)), np.concatenate(arrays)
    assert pooled.count == len(union)
    if len(union):
        assert pooled.mean == pytest.approx(union.mean(), rel=1e-12, abs=1e-9)
        # fsum over the union is the independent reference; 1e6 squared is where raw squares would have failed.
        exact = math.fsum((value - math.fsum(union) / len(union)) ** 2 for value in union)
        assert pooled.squares == pytest.approx(exact, rel=1e-7, abs=1e-7)
    assert pool_moments(map(moments, arrays[::-1])) == pooled


def test_the_order_of_the_sites_changes_nothing(raw) -> None:
    sites = [site(name, values) for name, values in raw.items()]
    assert agree(sites) == agree(sites[::-1])
    assert agree(sites).digest == agree(sites[::-1]).digest
    moved = replace(sites[0], labels={"mortality": (20, 22)})
    assert agree([moved, *sites[1:]]).digest != agree(sites).digest


def test_own_scores_become_those_of_pooled_preparation(raw) -> None:
    """Fill values, too, which are z-scores of one value in the variable's unit."""
    agreement = agree([site(name, values) for name, values in raw.items()])
    for values in raw.values():
        for name in EHR_VARIABLES:
            given_values = np.append(values[name], SCHEMA.fills[name])
            number, own_values = len(values[name]), values[name]
            own = Scale(
                mean=float(own_values.mean()) if number else SCHEMA.fills[name],
                sd=float(own_values.std()) if number else 1.0,
                num_values=number,
            )
            factor, shift = affine(own, agreement.ehr[name])
            agreed = (given_values - own.mean) / own.sd * factor + shift
            pooled = np.concatenate([each[name] for each in raw.values()])
            np.testing.assert_allclose(agreed, (given_values - pooled.mean()) / pooled.std(), rtol=1e-7, atol=1e-7)


def test_a_variable_that_nobody_measured_is_only_centred_on_its_fill() -> None:
    values = {name: np.zeros(0) for name in (*EHR_VARIABLES, *MEASURES)}
    agreement = agree([site("alpha", values), site("beta", values)])
    assert agreement.ehr["Albumin"] == Scale(mean=SCHEMA.fills["Albumin"], sd=1.0, num_values=0)
    assert agreement.demographics["height"] == Scale(mean=0.0, sd=1.0, num_values=0)


def test_values_that_are_all_the_same_are_not_divided_by_rounding(raw) -> None:
    flat = {name: np.full(7, 0.21) for name in raw["alpha"]}
    more = {name: np.full(11, 0.21) for name in raw["alpha"]}
    agreement = agree([site("alpha", flat), site("beta", more)])
    assert agreement.ehr["Albumin"].sd == 1.0
    assert agreement.demographics["age"].sd == 1.0


def test_sites_of_one_cohort_count_its_statistics_once(raw) -> None:
    first = site("alpha", raw["alpha"], source="one cohort")
    second = site("beta", raw["alpha"], source="one cohort")
    other = site("gamma", raw["gamma"])
    agreement = agree([first, second, other])
    expected = agree([first, other])
    assert agreement.ehr == expected.ehr
    assert agreement.categories == expected.categories
    assert agreement.labels["mortality"] == (60, 63)
    # What the first of them refuses, the other still tells.
    assert agree([without(first, "ehr/Albumin"), second, other]).ehr == expected.ehr


def test_what_a_site_refuses_is_left_to_the_others_and_reported(raw) -> None:
    sites = [site(name, values) for name, values in raw.items()]
    refusing = without(without(sites[0], "ehr/Albumin"), "demographics/race_group", "fewer than 10 training patients")
    agreement = agree([refusing, *sites[1:]])
    values = np.concatenate([raw[name]["Albumin"] for name in ("beta", "gamma")])
    assert agreement.ehr["Albumin"].mean == pytest.approx(values.mean(), rel=1e-9)
    assert agreement.categories["race_group_WHITE"] == 22
    assert agreement.report() == [
        "alpha does not disclose ehr/Albumin: the site refuses"
        if reason == "the site refuses"
        else "alpha does not disclose demographics/race_group: fewer than 10 training patients"
        for reason in sorted(refusing.withheld.values())
    ]


def test_profiles_that_change_what_values_mean_are_reported(raw) -> None:
    first, second = site("alpha", raw["alpha"], profile="published"), site("beta", raw["beta"])
    published, different = agree([first, second]).report()
    assert "not of the training part only: alpha" in published
    assert "alpha by published, beta by corrected" in different


def test_what_nobody_discloses_is_left_out(raw) -> None:
    sites = [without(without(site(name, values), "ehr/Albumin"), "demographics/weight") for name, values in raw.items()]
    agreement = agree(sites)
    assert agreement.left_out == ("ehr/Albumin", "demographics/weight")
    assert affine(Scale(mean=3.0, sd=0.5, num_values=9), agreement.ehr.get("Albumin")) == (0.0, 0.0)
    assert "left out of training" in agreement.report()[-1]


@pytest.mark.parametrize("task", list(Task))
def test_class_weights_are_those_of_all_labels_together(raw, task: Task) -> None:
    sites = [site(name, values, task) for name, values in raw.items()]
    found = agree(sites).class_weights("balanced")
    counts = [60 + 3 * k for k in range(len(TASK_CLASSES[task]))]
    expected = class_weights_from_counts(
        "balanced",
        progression=[counts] * 7 if task is Task.DISEASE_PROGRESSION else None,
        mortality=counts if task is Task.MORTALITY else None,
    )
    for name in ("progression", "mortality_positive"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None)
        assert left is None or (left == right).all()


def test_a_class_whose_count_is_withheld_keeps_a_weight(raw) -> None:
    task = Task.DISEASE_PROGRESSION
    counts = dict.fromkeys(DISEASES, (90, 90, 0))
    told = site("alpha", raw["alpha"], task, labels=counts)
    hidden = without(site("beta", raw["beta"], task), "labels/pneumonia")
    weights = agree([told, hidden]).class_weights("balanced").progression
    assert weights is not None
    # 90, 90 and the nine that beta may have: 189 / (3 x 9).
    assert weights[DISEASES.index("pneumonia")].tolist() == pytest.approx([0.7, 0.7, 7.0])
    nobody = agree([without(hidden, "labels/atelectasis")]).class_weights("balanced").progression
    assert nobody is not None
    assert nobody[0].tolist() == [1.0, 1.0, 1.0]


def test_json_and_back_lose_nothing(raw) -> None:
    sites = [site(name, values) for name, values in raw.items()]
    again = [SiteStatistics.from_json(each.to_json()) for each in sites]
    assert again == sites
    agreement = agree(sites)
    assert Agreement.from_json(agreement.to_json()) == agreement
    assert Agreement.from_json(agreement.to_json()).digest == agreement.digest


def test_text_that_is_no_statistics_is_refused(raw) -> None:
    facts = json.loads(site("alpha", raw["alpha"]).to_json())
    for change, words in (
        ({"site": 7}, "site"),
        ({"patients": [1]}, "patients"),
        ({"ehr": {"Albumin": {"count": 1.5, "mean": 0, "squares": 0}}}, "Albumin"),
    ):
        with pytest.raises(AgreementError, match=words):
            SiteStatistics.from_json(json.dumps({**facts, **change}))
    with pytest.raises(AgreementError, match="not"):
        Agreement.from_json("[")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": Task.LENGTH_OF_STAY, "labels": {"length_of_stay": (1, 2, 3, 4)}}, "task"),
        ({"schema": replace(SCHEMA, columns=(*DEMOGRAPHICS[:-1], "marital_status_UNMARRIED"))}, "UNMARRIED"),
        ({"schema": replace(SCHEMA, variables=EHR_VARIABLES[::-1])}, "another order"),
        ({"schema": replace(SCHEMA, windows={**SCHEMA.windows, "stay_hours": 49.0})}, "stay_hours: 48.0 and 49.0"),
        ({"schema": replace(SCHEMA, fills={**SCHEMA.fills, "Temperature": 98.6})}, "unit. of Temperature"),
        ({"site": "alpha"}, "different names"),
        ({"ehr": {}}, "missing or unknown: ehr/Alanine"),
        ({"labels": {"mortality": (1, 2, 3)}}, "impossible: mortality"),
        ({"labels": {"mortality": (-1, 2)}}, "impossible: mortality"),
        ({"categories": {}}, "demographics/gender"),
        ({"withheld": {"ehr/Albumin": "no"}}, "each of the"),
    ],
)
def test_sites_that_do_not_fit_are_refused_by_name(raw, change: dict, words: str) -> None:
    with pytest.raises(AgreementError, match=words) as caught:
        agree([site("alpha", raw["alpha"]), replace(site("beta", raw["beta"]), **change)])
    assert "alpha" in str(caught.value) or "beta" in str(caught.value)


def test_numbers_that_cannot_be_are_refused(raw) -> None:
    whole = site("alpha", raw["alpha"])
    for bad in (Moments(count=-1, mean=0.0, squares=0.0), Moments(count=3, mean=math.nan, squares=1.0)):
        with pytest.raises(AgreementError, match=r"alpha.*impossible: Albumin"):
            agree([replace(whole, ehr={**whole.ehr, "Albumin": bad})])
    with pytest.raises(AgreementError, match="found none"):
        agree([])


def test_items_are_named_once() -> None:
    items = items_of(Task.DISEASE_PROGRESSION)
    assert len(items) == len(set(items)) == 38 + 3 + 4 + 7
    assert sum(map(len, CATEGORIES.values())) + len(MEASURES) == len(DEMOGRAPHICS)
