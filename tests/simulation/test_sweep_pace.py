"""How long a sweep is said to go on."""

import pytest

from simulation.sweep.pace import Pace


def test_nothing_is_said_before_anything_is_done() -> None:
    pace = Pace()
    assert pace.seconds_for([("central", 12.0)]) is None
    pace.add("central", 0.0, 30.0)
    assert pace.seconds_for([("central", 12.0)]) is None


def test_each_model_goes_at_its_own_pace_and_a_new_one_at_that_of_all() -> None:
    pace = Pace()
    pace.add("central", 10.0, 100.0)
    pace.add("central", 2.0, 20.0)
    pace.add("one step", 60.0, 60.0)
    assert pace.seconds_for([("central", 6.0)]) == pytest.approx(60.0)
    assert pace.seconds_for([("one step", 180.0), ("central", 1.0)]) == pytest.approx(190.0)
    assert pace.seconds_for([("new", 72.0)]) == pytest.approx(180.0)
    assert pace.seconds_for([]) == 0.0


def test_a_copy_goes_on_by_itself() -> None:
    pace = Pace()
    pace.add("central", 1.0, 5.0)
    pace.copy().add("central", 1.0, 500.0)
    assert pace.seconds_for([("central", 2.0)]) == pytest.approx(10.0)
