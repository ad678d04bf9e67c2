"""What evidence can tell: the posteriors are right, and the gaps between kinds of evidence are as promised."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulation.synthesize.course import FINDINGS, LOADINGS, ramp
from simulation.synthesize.oracles import EVIDENCE, TRUTH, ceilings, ceilings_of_folders, evidence_logits, usable_images


def brute_force(patient, world, hospital, rows, ehr):
    """Posterior mean of the log odds by conditioning the whole joint Gaussian of states and observed logits."""
    scale = np.array([world.burden_sd, world.burden_trend_sd, 1.0, world.physiology_trend_sd, 1.0, 1.0])
    covariance = np.eye(6)
    for state, echo in ((0, 4), (1, 5)):
        covariance[state, echo] = covariance[echo, state] = world.respiratory_correlation
    covariance *= np.outer(scale, scale)
    mean = scale * [hospital.burden_shift, 0.0, hospital.physiology_shift, 0.0, hospital.burden_shift, 0.0]
    hours = np.array([patient.images[row].hours for row in rows])
    design, noise, values = np.zeros((0, 6)), np.zeros((0, 0)), np.zeros(0)
    entries = [(t, k) for t in range(len(rows)) for k in range(len(FINDINGS))]
    if entries:
        design = np.zeros((len(entries), 6))
        noise = np.zeros((len(entries), len(entries)))
        for i, (t, k) in enumerate(entries):
            loading = LOADINGS[FINDINGS[k][0]][1]
            design[i, :2] = loading, loading * ramp(hours[t], world)
            for j, (s, other) in enumerate(entries):
                same_disease = FINDINGS[k][0] == FINDINGS[other][0]
                shared = 1.0 if k == other else world.side_correlation if same_disease else 0.0
                lag = np.exp(-abs(hours[t] - hours[s]) / world.fluctuation_hours)
                noise[i, j] = shared * world.fluctuation_sd**2 * lag + (k == other) * world.offset_sd**2
        seen = patient.severities[rows]
        base = np.array([LOADINGS[disease][0] for disease, _ in FINDINGS])
        values = (np.log(seen / (1.0 - seen)) - base).ravel()
    if ehr:
        states = patient.latents
        design = np.vstack([design, np.eye(6)[2:]])
        noise = np.block([[noise, np.zeros((len(values), 4))], [np.zeros((4, len(values))), 1e-10 * np.eye(4)]])
        charts = [states.physiology, states.physiology_trend, states.respiratory, states.respiratory_trend]
        values = np.concatenate([values, charts])
    gain = covariance @ design.T @ np.linalg.inv(design @ covariance @ design.T + noise)
    c0, tau, e0, epsilon, *_ = mean + gain @ (values - design @ mean)
    w, level_sd = world, np.hypot(world.burden_sd, world.burden_trend_sd)
    age = patient.latents.age if ehr else hospital.mean_age
    on_tau = w.weight_burden_trend / w.burden_trend_sd + w.weight_burden_level / level_sd
    on_c0 = w.weight_burden_level / level_sd
    on_epsilon = w.weight_physiology_trend / w.physiology_trend_sd
    spread = np.linalg.norm(
        [
            on_tau * w.burden_trend_sd,
            on_c0 * w.burden_sd,
            w.weight_physiology_level,
            w.weight_physiology_trend,
            w.weight_age,
        ]
    )
    total = on_tau * tau + on_c0 * c0 + w.weight_physiology_level * e0 + on_epsilon * epsilon
    return w.risk_intercept + w.risk_sd * (total + w.weight_age * (age - 65.0) / 15.0) / spread


@pytest.mark.parametrize("index", [0, 5, 811, 1630])
def test_posteriors_equal_brute_force_conditioning(courses, world, index) -> None:
    hospital, patient = courses[index]
    rows = usable_images(patient)
    found = evidence_logits(patient, world, hospital)
    expected = {
        "images": brute_force(patient, world, hospital, rows, False),
        "last_image": brute_force(patient, world, hospital, rows[-1:], False),
        "ehr": brute_force(patient, world, hospital, rows[:0], True),
        "last_image_and_ehr": brute_force(patient, world, hospital, rows[-1:], True),
        "images_and_ehr": brute_force(patient, world, hospital, rows, True),
    }
    assert found == pytest.approx(expected, abs=1e-5)


def test_both_kinds_of_evidence_and_the_sequence_are_needed(courses, world) -> None:
    chosen = [(hospital, p) for hospital, p in courses if p.dirt != "short stay" and len(usable_images(p)) >= 2]
    rows = [evidence_logits(patient, world, hospital) for hospital, patient in chosen]
    scores = {name: [row[name] for row in rows] for name in rows[0]} | {"true_risk": [p.risk for _, p in chosen]}
    best = ceilings([p.died for _, p in chosen], scores)
    assert 0.90 < best["true_risk"] < 0.94
    assert best["images_and_ehr"] > 0.89
    assert best["images_and_ehr"] - best["images"] > 0.05
    assert best["images_and_ehr"] - best["ehr"] > 0.05
    assert best["images_and_ehr"] - best["last_image_and_ehr"] > 0.05
    assert best["images"] - best["last_image"] > 0.05


def test_one_outcome_only_has_no_auroc() -> None:
    assert ceilings([True, True], {"anything": [0.1, 0.2]}) == {"anything": None}


def test_ceilings_of_folders_use_long_stays_and_only_those_named(tmp_path) -> None:
    scores = [0.1, 0.2, 0.3, 0.4, 0.5]
    table = {
        "stay_id": [1, 2, 3, 4, 5],
        "los_days": [3.0, 4.0, 1.5, 5.0, 6.0],
        "died": [False, True, True, False, True],
        "risk": scores,
        **{f"logit_{name}": scores for name in EVIDENCE},
    }
    pq.write_table(pa.table(table), tmp_path / TRUTH)
    # By hand, without stay 3: deaths 0.2 and 0.5 against survivors 0.1 and 0.4, three of four pairs in order.
    assert set(ceilings_of_folders([tmp_path]).values()) == {0.75}
    assert set(ceilings_of_folders([tmp_path], stay_ids={1, 2}).values()) == {1.0}
    assert set(ceilings_of_folders([tmp_path], stay_ids={2, 5}).values()) == {None}
