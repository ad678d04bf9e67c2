"""Masked rounds as the server's log tells them: which gave a sum, how often each began, whose masks opened."""

from federation.masked_log import MaskedRound, masked_rounds


def _event(kind: str, number: object, attempt: object, **facts: object) -> tuple[str, dict]:
    return kind, {"round": number, "attempt": attempt, **facts}


def test_attempts_are_counted_and_the_last_sum_of_a_round_counts() -> None:
    both, three = ["b", "a"], ["a", "b", "c"]
    told = [
        _event("masking", 1, "x"),
        ("sent", {"round": 1, "site": "a"}),
        _event("unmasked", 1, "x", members=three, survivors=both),
        _event("masking", 2, "y"),
        _event("masking", 2, "z"),
        _event("masking", 2, "z"),  # told twice, begun once
    ]
    assert masked_rounds(told) == [
        MaskedRound(round=1, masked=("a", "b"), opened=("c",), attempts=1),
        MaskedRound(round=2, masked=(), opened=(), attempts=2),
    ]
    again = [*told, _event("masking", 1, "w"), _event("unmasked", 1, "w", members=three, survivors=three)]
    first = masked_rounds(again)[0]
    assert (first.masked, first.opened, first.attempts) == (("a", "b", "c"), (), 2)
    assert [each.has_sum for each in masked_rounds(again)] == [True, False]


def test_an_older_log_that_tells_sums_alone_is_read() -> None:
    (only,) = masked_rounds([_event("unmasked", 3, "x", members=["a"], survivors=["a"], revealed_by=["a"])])
    assert (only.round, only.attempts) == (3, 1)


def test_facts_of_another_form_are_passed_over() -> None:
    strange = [
        _event("masking", "1", "x"),
        _event("masking", True, "x"),
        _event("masking", 1, None),
        _event("unmasked", 2, "x", members="ab", survivors=["a"]),
        _event("unmasked", 3, "x", members=["a"], survivors=[1]),
        ("unmasked", {}),
    ]
    assert [(each.round, each.has_sum) for each in masked_rounds(strange)] == [(2, False), (3, False)]
