"""Each guard refuses its own fault by name and reason; the other replies of the round go on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.initial import initial_model
from federation.selection import Entries, model_entries
from server.guards import Guard, Submission, norm_groups, outlying_norms, surely_ordinary
from tests.small_run import small_settings


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A reply that is not used."""

    site: str
    reason: str
    """What was expected and what came."""


def sort_replies(
    replies: Sequence[Submission], guard: Guard, *, norm_factor: float | None = 10.0
) -> tuple[list[Submission], list[Refusal]]:
    """The replies that can be aggregated, in their order, and the others with their reasons.

    Of several replies of a site the first that passes counts. `norm_factor` None leaves the norms alone.
    """
    accepted: dict[str, Submission] = {}
    refused: list[Refusal] = []
    for reply in replies:
        reason = guard.problem(reply, accepted)
        if reason is None:
            accepted[reply.site] = reply
        else:
            refused.append(Refusal(site=reply.site, reason=reason))
    if norm_factor is not None:
        norms = {site: guard.norms(reply) for site, reply in accepted.items()}
        for site, reason in outlying_norms(norms, norm_factor).items():
            del accepted[site]
            refused.append(Refusal(site=site, reason=reason))
    return list(accepted.values()), refused


SIZE = 12
REFERENCE = np.linspace(-1, 1, SIZE, dtype=np.float32)
COUNTS = {"east": 10, "north": 20, "south": 30, "west": 40}
GUARD = Guard(
    server_round=7,
    code_digest="c" * 64,
    layout_digest="d" * 64,
    agreement_digest="a" * 64,
    num_samples=COUNTS,
    reference=REFERENCE,
)


def _reply(site: str, length: float = 1.0) -> Submission:
    """An update of this length."""
    direction = np.random.default_rng(sum(site.encode())).normal(size=SIZE)
    step = (length * direction / np.linalg.norm(direction)).astype(np.float32)
    return Submission(
        site=site,
        server_round=7,
        code_digest="c" * 64,
        layout_digest="d" * 64,
        agreement_digest="a" * 64,
        num_samples=COUNTS.get(site, 5),
        array_names=("weights",),
        weights=REFERENCE + step,
    )


ROUND = [_reply(site) for site in COUNTS]


def _weights(**changes: float) -> np.ndarray:
    weights = ROUND[2].weights.copy()
    for place, value in changes.items():
        weights[int(place.removeprefix("at"))] = value
    return weights


def test_replies_that_are_as_they_must_be_all_go_on() -> None:
    assert sort_replies(ROUND, GUARD) == (ROUND, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"server_round": 6}, "expected a reply to round 7, found one to round 6"),
        ({"server_round": 8}, "expected a reply to round 7, found one to round 8"),
        ({"code_digest": "e" * 64}, "expected code cccccccccccc, found eeeeeeeeeeee; update the site"),
        ({"code_digest": ""}, "expected code cccccccccccc, found none; update the site"),
        (
            {"layout_digest": "e" * 64},
            "expected weights of layout dddddddddddd, found eeeeeeeeeeee; give the site the ",
        ),
        (
            {"agreement_digest": "b" * 64},
            "expected the normalisation and class weights of agreement aaaaaaaaaaaa, found bbbbbbbbbbbb; start the run",
        ),
        ({"num_samples": 10**9}, "expected 30 training samples, as registered, found 1000000000"),
        ({"num_samples": 0}, "expected 30 training samples, as registered, found 0"),
        ({"num_samples": -30}, "expected 30 training samples, as registered, found -30"),
        ({"num_samples": float("nan")}, "expected 30 training samples, as registered, found nan"),
        ({"array_names": ("weights", "more")}, "expected arrays ['weights'], found ['weights', 'more']"),
        ({"array_names": ("other",)}, "expected arrays ['weights'], found ['other']"),
        ({"weights": REFERENCE.astype(np.float64)}, "expected weights as float32, found float64"),
        ({"weights": REFERENCE[:1]}, "expected weights of shape [12], found [1]"),
        ({"weights": REFERENCE[0]}, "expected weights of shape [12], found []"),
        ({"weights": REFERENCE[None]}, "expected weights of shape [12], found [1, 12]"),
        ({"weights": _weights(at3=np.nan)}, "expected finite weights, found 1 that are not"),
        ({"weights": _weights(at3=np.inf, at4=-np.inf)}, "expected finite weights, found 2 that are not"),
        (
            {"weights": _weights(at3=1e30)},
            "expected an update (update) of at most 10 times the round's median norm 1, found 1e+30",
        ),
    ],
)
def test_a_fault_is_named_and_the_rest_go_on(change: dict, words: str) -> None:
    replies = [replace(reply, **change) if reply.site == "south" else reply for reply in ROUND]
    accepted, refused = sort_replies(replies, GUARD)
    assert [reply.site for reply in accepted] == ["east", "north", "west"]
    (refusal,) = refused
    assert refusal.site == "south"
    assert refusal.reason.startswith(words)


def test_an_unknown_site_is_refused() -> None:
    accepted, refused = sort_replies([*ROUND, _reply("elsewhere")], GUARD)
    assert accepted == ROUND
    assert refused == [
        Refusal(site="elsewhere", reason="expected a reply of east, north, south, west, found one of elsewhere")
    ]


def test_the_first_good_reply_of_a_site_counts() -> None:
    again = _reply("south", length=1.1)
    accepted, refused = sort_replies([*ROUND, again], GUARD)
    assert accepted == ROUND
    assert refused == [Refusal(site="south", reason="expected one reply to round 7, found another")]
    stale = replace(again, server_round=6)  # a late reply to an earlier round is not the site's answer to this one
    accepted, refused = sort_replies([stale, *ROUND], GUARD)
    assert accepted == ROUND
    assert [each.site for each in refused] == ["south"]
    assert "round 6" in refused[0].reason


def test_a_negative_variance_is_refused_where_variances_are_known() -> None:
    guard = replace(GUARD, variances=Entries(total=SIZE, runs=((10, 12),)))
    assert sort_replies(ROUND, guard) == (ROUND, [])
    bad = replace(ROUND[0], weights=_weights(at11=-0.001))
    _, refused = sort_replies([bad, *ROUND[1:]], guard)
    assert refused == [Refusal(site="east", reason="expected running variances of zero or more, found 1 below")]


@pytest.mark.parametrize(("length", "goes_on"), [(9.99, True), (10.01, False), (0.0, True)])
def test_the_factor_of_the_norm_guard_is_exact(length: float, goes_on: bool) -> None:
    replies = [_reply("east"), _reply("north"), _reply("south", length), _reply("west")]
    accepted, _ = sort_replies(replies, GUARD)
    assert ("south" in {reply.site for reply in accepted}) == goes_on
    assert sort_replies(replies, GUARD, norm_factor=None) == (replies, [])


def test_two_replies_have_no_meaningful_median() -> None:
    replies = [_reply("east"), _reply("north", 1000)]
    for factor in (10.0, 1.5):
        assert sort_replies(replies, GUARD, norm_factor=factor) == (replies, [])
    accepted, refused = sort_replies([*replies, _reply("south")], GUARD)
    assert ([reply.site for reply in accepted], [each.site for each in refused]) == (["east", "south"], ["north"])


def test_a_median_of_nothing_judges_nothing() -> None:
    replies = [_reply("east", 0), _reply("north", 0), _reply("south", 5)]
    assert sort_replies(replies, GUARD) == (replies, [])


def test_one_scaled_by_a_hundred_among_five_is_found_and_a_flipped_sign_is_not() -> None:
    flipped = replace(ROUND[3], weights=2 * REFERENCE - ROUND[3].weights)
    scaled = replace(ROUND[0], weights=REFERENCE + 100 * (ROUND[0].weights - REFERENCE))
    _, refused = sort_replies([scaled, ROUND[1], ROUND[2], flipped], GUARD)
    assert [each.site for each in refused] == ["east"]


def test_running_statistics_do_not_hide_the_parameters() -> None:
    groups = {
        "parameters": Entries(total=SIZE, runs=((0, 10),)),
        "running statistics": Entries(total=SIZE, runs=((10, 12),)),
    }
    large = np.zeros(SIZE, np.float32)
    large[10:] = 1000  # every site's statistics move by a thousand
    replies = [replace(reply, weights=reply.weights + large) for reply in ROUND]
    replies[1] = replace(replies[1], weights=replies[1].weights + np.float32(20) * (np.arange(SIZE) < 10))
    assert sort_replies(replies, GUARD)[1] == []  # together nothing is seen
    (refusal,) = sort_replies(replies, replace(GUARD, groups=groups))[1]
    assert refusal.site == "north"
    assert "(parameters)" in refusal.reason
    replies = [replace(ROUND[0], weights=ROUND[0].weights + large), *ROUND[1:]]
    (refusal,) = sort_replies(replies, replace(GUARD, groups=groups))[1]
    assert (refusal.site, "(running statistics)" in refusal.reason) == ("east", True)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e30])
def test_lengths_of_large_updates_are_those_of_double_precision(scale: float) -> None:
    """Also where squares overflow single precision, and where a part of the array ends within a part that is summed."""
    random = np.random.default_rng(0)
    reference = random.normal(size=700_001).astype(np.float32)
    weights = (reference + scale * random.normal(size=reference.size)).astype(np.float32)
    groups = {
        "first": Entries(total=reference.size, runs=((0, 300_000),)),
        "rest": Entries(total=reference.size, runs=((300_000, 700_001),)),
    }
    guard = replace(GUARD, reference=reference, groups=groups)
    change = weights.astype(np.float64) - reference
    expected = {"first": np.linalg.norm(change[:300_000]), "rest": np.linalg.norm(change[300_000:])}
    assert guard.norms(replace(ROUND[0], weights=weights)) == pytest.approx(expected, rel=2e-6)


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=9), st.floats(1, 20), st.integers(0, 8))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_fewer_than_half_cannot_move_the_median_beyond_honest_norms(honest: list, factor: float, liars: int) -> None:
    norms = {f"honest {number}": {"update": value} for number, value in enumerate(honest)}
    norms |= {f"liar {number}": {"update": 1e9 + number} for number in range(min(liars, len(honest) - 1))}
    refused = outlying_norms(norms, factor)
    for site, each in norms.items():  # a loop that knows the median by sorting
        values = sorted(value["update"] for value in norms.values())
        half = len(values) // 2
        middle = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
        assert (site in refused) == (0 < factor * middle < each["update"])
    if min(honest) > 0 and max(honest) < factor * min(honest):
        assert not any(site.startswith("honest") for site in refused)


LENGTHS = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100), st.booleans()), min_size=1, max_size=9)


@given(LENGTHS, st.integers(0, 9), st.floats(1, 20))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_what_is_surely_ordinary_is_accepted_whatever_comes_later(lengths: list, first: int, factor: float) -> None:
    norms = {f"site {n}": {"parameters": a, "statistics": b} for n, (a, b, _) in enumerate(lengths)}
    early = dict(list(norms.items())[:first])
    sure = surely_ordinary(early, len(norms), factor)
    arrived = {site: each for (site, each), (_, _, comes) in zip(norms.items(), lengths, strict=True) if comes}
    assert not sure & set(outlying_norms(early | arrived, factor))
    if len(early) == len(norms):
        assert set(norms) - sure >= set(outlying_norms(norms, factor))


def test_more_than_half_of_like_replies_are_sure() -> None:
    norms = {f"site {number}": {"update": 1.0 + number} for number in range(4)}
    assert surely_ordinary(norms, 7, 10.0) == set(norms)
    assert surely_ordinary(norms, 9, 10.0) == set()
    assert surely_ordinary({**norms, "long": {"update": 50.0}}, 7, 10.0) == set(norms)


def test_a_factor_below_one_would_refuse_the_median_itself() -> None:
    with pytest.raises(ValueError, match=r"expected a factor of 1 or more for the norm guard, found 0\.5"):
        outlying_norms({}, 0.5)


def test_the_groups_of_a_model_are_what_is_trained() -> None:
    for freeze in ("true", "false"):
        entries = model_entries(initial_model(small_settings(f"model.freeze_backbone={freeze}")))
        groups = norm_groups(entries)
        assert list(groups) == ["parameters", "running statistics"]
        np.testing.assert_array_equal(sum(each.mask() for each in groups.values()), entries.trained.mask())
        assert groups["running statistics"].both(entries.parameters).size == 0


def test_a_large_update_is_measured_in_double_precision() -> None:
    size = (1 << 20) + 5
    guard = replace(GUARD, reference=np.zeros(size, np.float32))
    reply = replace(ROUND[0], weights=np.full(size, 1e25, np.float32))
    assert guard.norms(reply)["update"] == pytest.approx(1e25 * np.sqrt(size), rel=1e-6)
