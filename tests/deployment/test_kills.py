"""A run whose processes are killed, against the same run that nobody killed."""

from collections.abc import Iterator

import pytest

from federation.audit import AUDIT, verify
from tests.deployment.chaos import chaos, equal, finished_rounds, last_weights, reference
from tests.deployment.live import REAL_PROCESSES, Live

pytestmark = REAL_PROCESSES


@pytest.fixture
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("kills"))
    live.provision()
    live.start()
    yield live
    live.stop()


def test_nothing_is_lost_by_kills(live: Live) -> None:
    """A small form of benchmarks/chaos.py: the model is that of the run in one process that nobody killed."""
    live.approve()
    report = chaos(live, live.folder / "killed", rounds=3, every=8.0, seed=5, most=3)
    assert report.kills.total() > 0
    assert report.corrupted == 0
    assert finished_rounds(live.folder / "killed") == 3
    expected = reference(live, live.folder / "reference", rounds=3)
    assert equal(last_weights(live.folder / "killed"), expected), f"differs after {report}"
    assert verify(live.folder / "killed" / AUDIT).num_entries > 10
