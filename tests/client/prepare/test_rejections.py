"""Counting what is left out."""

import json

import pytest

from client.prepare.rejections import NUM_EXAMPLES, PrepareError, Rejections


def test_counts_add_up_by_stage_and_reason():
    rejections = Rejections()
    rejections.add("no number", 3, where="ehr", examples=["stay 1"])
    rejections.add("no number", 2, where="ehr", examples=["stay 2"])
    rejections.add("no number", where="images")
    assert rejections.count("no number") == 6
    assert rejections.count("no number", where="ehr") == 5
    assert rejections.to_report()["ehr"] == {"no number": {"count": 5, "examples": ["stay 1", "stay 2"]}}
    json.dumps(rejections.to_report())


def test_few_examples_are_kept_however_many_come():
    rejections = Rejections()
    for first in (0, 100):
        rejections.add("late", 100, where="stays", examples=[str(first + i) for i in range(100)])
    assert rejections.to_report()["stays"]["late"]["examples"] == [str(i) for i in range(NUM_EXAMPLES)]


def test_nothing_rejected_leaves_no_trace_even_when_strict():
    rejections = Rejections(strict=True)
    rejections.add("no number", 0, where="ehr")
    assert rejections.to_report() == {}


def test_strict_stops_at_the_first_and_says_where_and_why():
    rejections = Rejections(strict=True)
    with pytest.raises(PrepareError, match=r"icustays\.csv: the stay ends before it starts: 2 rejected.*stay 7"):
        rejections.add("the stay ends before it starts", 2, where="icustays.csv", examples=["stay 7"])
