"""Secure aggregation's settings: every contradiction is refused before anything runs, with all reasons at once."""

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.policy import PolicyError, load_policy
from federation.secure_settings import SUMMABLE, SecureAggregationSettings
from federation.settings import SettingsError, load_settings
from server.strategies import STRATEGIES
from tests.masked_run import MASKED, masked_settings

FIVE = ("federation.num_sites=5",)


def test_strategies_that_need_the_mean_alone_are_the_ones_that_work() -> None:
    assert set(SUMMABLE) == {name for name, kind in STRATEGIES.items() if kind.of_mean}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("strategy.norm_factor=10", "norm_factor compares the lengths of single updates.*expected 0, found 10"),
        *(
            (f"strategy.name={name}", f"strategy.name={name} looks at single updates.*expected one of fedavg")
            for name in STRATEGIES
            if name not in SUMMABLE
        ),
        *(
            (f"communication.codec={codec}", f"codec={codec} rounds what a site sends.*expected fp32 or trained")
            for codec in ("bf16", "int8", "topk")
        ),
        ("federation.quorum=3", "expected federation.quorum of 4 or more, found 3"),
        ("secure_aggregation.threshold=6", "threshold of at most the 5 sites of a round, found 6"),
        ("secure_aggregation.threshold=2", "threshold above half of the 5 sites of a round, found 2"),
        ("federation.num_sites=1", "the sum of one site is its update"),
        ("federation.fraction=0.2", "expected 2 sites a round or more, found 1"),
        ("secure_aggregation.neighbours=5", "neighbours: .*multiple of 2.*found 5"),
        ("secure_aggregation.largest_change=0", "largest_change: .*greater than 0.*found 0"),
    ],
)
def test_a_contradiction_is_named(override: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings(overrides=[*MASKED, *FIVE, override])


def test_all_reasons_come_at_once_and_none_without_secure_aggregation() -> None:
    wrong = ("strategy.name=krum", "communication.codec=topk", "federation.quorum=1")
    with pytest.raises(SettingsError, match=r"quorum.*krum.*norm_factor.*topk"):
        load_settings(overrides=["secure_aggregation.enabled=true", *FIVE, *wrong])
    load_settings(overrides=[*FIVE, *wrong])
    load_settings(overrides=[*MASKED, *FIVE, "federation.quorum=4", "communication.codec=trained"])


@given(st.integers(2, 200))
def test_two_thirds_is_the_least_number_above(num_asked: int) -> None:
    """So that two lists with the threshold share more than a third of the sites, of which one is honest."""
    least = SecureAggregationSettings().least_sites(num_asked)
    assert 3 * (least - 1) <= 2 * num_asked < 3 * least
    assert 2 * least - num_asked > num_asked / 3
    assert 2 * least - num_asked > (num_asked - 1) // 3, "fewer than a third cannot all be in both lists alone"


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("summed_sites: 2", (), "in a sum of 2 sites or more, found one of 1"),
        ("summed_sites: 5", MASKED, "in a sum of 5 sites or more, found one of 4"),
    ],
)
def test_a_site_that_asks_for_a_sum_of_more_sites_refuses(
    tmp_path: Path, text: str, overrides: tuple[str, ...], words: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"{text}\nminimum_cell: 1\n")
    policy = load_policy(path)
    with pytest.raises(PolicyError, match=words):
        policy.check(load_settings(overrides=[*FIVE, *overrides]), 30, datetime(2026, 1, 1))
    policy.check(masked_settings(*FIVE, "secure_aggregation.threshold=5"), 30, datetime(2026, 1, 1))
