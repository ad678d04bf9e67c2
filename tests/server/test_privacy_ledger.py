"""What was spent is what independent accountants say, and no crash, no change of the file makes it less."""

import json
import math
from pathlib import Path

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from federation.audit import AuditError
from federation.settings import load_settings
from server.privacy_ledger import LEDGER, Charge, Ledger, spent
from server.site_privacy import Shares, noise_of

DELTA = 1e-5
CASES = [(1.0, 1), (4.25, 50), (5.0, 10), (0.8, 3), (2.0, 50), (7.0, 100)]


def _exact(noise: float, count: int) -> float:
    """Of so many Gaussian mechanisms, together one of noise / sqrt(count) (Balle and Wang 2018, theorem 8)."""
    mu = math.sqrt(count) / noise

    def too_much(epsilon: float) -> float:
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - DELTA

    return float(brentq(too_much, 0, 200))


@pytest.mark.parametrize(("noise", "count"), CASES)
def test_epsilon_agrees_with_another_accountant_and_with_the_formula(noise: float, count: int) -> None:
    event = dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(noise), count)
    for name, other in (("prv", PLDAccountant()), ("rdp", RdpAccountant())):
        other.compose(event)
        assert spent([noise] * count, DELTA, name) == pytest.approx(other.get_epsilon(DELTA), rel=0.01), name
    found = spent([noise] * count, DELTA, "prv")
    assert _exact(noise, count) <= found <= 1.01 * _exact(noise, count)


def test_charges_of_different_noise_add_up() -> None:
    other = PLDAccountant()
    noises = [3.0, 6.0, 3.0, 4.0, 6.0]
    for noise in noises:
        other.compose(dp_event.GaussianDpEvent(noise))
    assert spent(noises, DELTA, "prv") == pytest.approx(other.get_epsilon(DELTA), rel=0.01)
    assert spent([], DELTA, "prv") == 0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_mean_and_count_together_spend_what_one_answer_does(share: float) -> None:
    settings = load_settings(
        overrides=[
            "training.batch_norm=frozen",
            "site_privacy.enabled=true",
            "site_privacy.clipping=adaptive",
            f"site_privacy.quantile_share={share}",
            "site_privacy.noise_multiplier=5.0",
        ]
    )
    shares = Shares.of(settings.site_privacy, noise_of(settings))
    assert shares.count is not None
    other = PLDAccountant()
    for noise in (shares.mean, shares.count):
        other.compose(dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(noise), 10))
    assert spent([5.0] * 10, DELTA, "prv") == pytest.approx(other.get_epsilon(DELTA), rel=0.01)


@pytest.mark.parametrize(("epsilon", "rounds"), [(8.0, 50), (1.0, 10), (3.0, 1)])
def test_the_noise_that_is_solved_for_is_the_least_that_is_enough(epsilon: float, rounds: int) -> None:
    settings = load_settings(
        overrides=[
            "training.batch_norm=frozen",
            "site_privacy.enabled=true",
            f"site_privacy.epsilon={epsilon}",
            f"federation.rounds={rounds}",
        ]
    )
    noise = noise_of(settings)
    assert _exact(noise, rounds) <= epsilon < _exact(0.97 * noise, rounds)


def _charge(number: int) -> Charge:
    return Charge(round=number, noise_multiplier=4.0, clip=0.5, epsilon=number / 10)


def test_charges_outlive_the_process_and_a_half_written_line_does_not(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.charge(_charge(1))
    ledger.charge(_charge(2))
    assert Ledger(tmp_path).charges == [_charge(1), _charge(2)] == ledger.charges
    path = tmp_path / LEDGER
    path.write_bytes(path.read_bytes()[:-7])  # the second opening
    assert Ledger(tmp_path).charges == [_charge(1), _charge(2)]
    again = Ledger(tmp_path)
    again.charge(_charge(2))
    assert [each.round for each in Ledger(tmp_path).charges] == [1, 2, 2]


def test_a_charge_that_was_changed_or_taken_out_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in (1, 2, 3):
        ledger.charge(_charge(number))
    path = tmp_path / LEDGER
    lines = path.read_text().splitlines(keepends=True)
    cheaper = json.loads(lines[2]) | {"noise_multiplier": 400.0}
    path.write_text("".join([*lines[:2], json.dumps(cheaper) + "\n", *lines[3:]]))
    with pytest.raises(AuditError, match="line 3: expected hash"):
        Ledger(tmp_path)
    path.write_text("".join([*lines[:2], *lines[3:]]))
    with pytest.raises(AuditError, match="lines were changed, removed or added here"):
        Ledger(tmp_path)
