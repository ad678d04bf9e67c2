"""The disease model: its distributions, and that stays suit the tasks they are made for."""

import numpy as np

from simulation.synthesize.course import DIRT, FINDINGS, draw_latents, draw_severities, kept_rows, risk_logit
from simulation.synthesize.settings import HospitalSettings


def test_log_odds_have_the_stated_mean_and_spread(world) -> None:
    average = HospitalSettings(name="average")
    rng = np.random.default_rng(0)
    logits = [risk_logit(draw_latents(rng, world, average), world) for _ in range(20_000)]
    assert abs(np.std(logits) - world.risk_sd) < 0.06
    assert abs(np.mean(logits) - world.risk_intercept) < 0.08


def test_about_a_fifth_to_a_quarter_of_the_patients_die_at_the_rate_of_their_risks(courses) -> None:
    died = np.array([patient.died for _, patient in courses])
    risk = np.array([patient.risk for _, patient in courses if patient.dirt != "short stay"])
    assert 0.19 < died.mean() < 0.27
    assert abs(died.sum() - risk.sum()) < 4.0 * np.sqrt((risk * (1.0 - risk)).sum())


def test_deaths_come_after_48_hours_and_not_before_the_end_of_the_stay(courses) -> None:
    dead = [patient for _, patient in courses if patient.died]
    assert min(patient.stay_hours for patient in dead) > 48.0
    assert all(patient.hours_to_death >= patient.stay_hours for patient in dead)
    assert all(patient.hours_to_death is None for _, patient in courses if not patient.died)


def test_length_of_stay_classes_are_balanced_and_hold_no_outlier(courses) -> None:
    days = np.array([p.stay_hours / 24.0 for _, p in courses if p.dirt not in ("short stay", "long stay")])
    shares = np.histogram(days, [2.0, 3.0, 4.0, 6.0, np.inf])[0] / len(days)
    assert shares.min() > 0.18
    assert shares.max() < 0.34
    first, third = np.percentile(days, [25.0, 75.0])
    assert (days > third + 1.5 * (third - first)).sum() == 0


def test_length_of_stay_grows_with_severity_trend_and_age(courses) -> None:
    days = np.argsort(np.argsort([p.stay_hours for _, p in courses]))
    for name in ("burden", "burden_trend", "physiology", "age"):
        values = np.argsort(np.argsort([getattr(p.latents, name) for _, p in courses]))
        assert np.corrcoef(days, values)[0, 1] > 0.08, name


def test_most_stays_have_two_usable_images_and_no_long_gap(courses) -> None:
    good = 0
    for _, patient in courses:
        hours = np.array([patient.images[row].hours for row in kept_rows(patient)])
        suits = (hours < 48.0).sum() >= 2 and len(hours) <= 14 and np.diff(hours).max() < 96.0
        good += suits and patient.dirt not in ("short stay", "long stay", "care-unit transfer")
    assert good / len(courses) > 0.93


def test_every_kind_of_untidiness_occurs_and_most_patients_have_none(courses) -> None:
    kinds = [patient.dirt for _, patient in courses]
    assert set(kinds) == {None, *DIRT}
    assert 0.75 < np.mean([kind is None for kind in kinds]) < 0.85


def test_fluctuations_have_the_stated_variance_and_correlation_in_time(world) -> None:
    rng = np.random.default_rng(3)
    flat = draw_latents(rng, world, HospitalSettings(name="average"))
    hours = np.array([0.0, 9.0, 18.0])
    paths = np.stack([draw_severities(rng, world, flat, hours) for _ in range(4000)])
    logits = np.log(paths / (1.0 - paths))
    logits = logits - logits.mean(axis=0)
    assert np.allclose(logits.std(axis=0), world.fluctuation_sd, atol=0.03)
    along = [[np.corrcoef(logits[:, 0, k], logits[:, t, k])[0, 1] for k in range(len(FINDINGS))] for t in (1, 2)]
    assert np.allclose(np.mean(along, axis=1), [np.exp(-0.5), np.exp(-1.0)], atol=0.03)
    left, right = FINDINGS.index(("pneumonia", "left")), FINDINGS.index(("pneumonia", "right"))
    assert abs(np.corrcoef(logits[:, 0, left], logits[:, 0, right])[0, 1] - world.side_correlation) < 0.04
