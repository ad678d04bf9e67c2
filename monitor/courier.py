"""Brings alarms from the database to a hook: each once, whoever else tries, and without holding up the recorder.

Before an alarm is sent it is claimed, in a transaction of its own, so that of several recorders one sends it; when it
was sent that is noted. Who ends between the two leaves a claim that runs out, and the alarm is sent again.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, Update, and_, func, or_, select, update

from monitor.database import Database, DatabaseAwayError, DatabaseError, prepare, upsert
from monitor.hooks import Hook, SendError
from monitor.limits import Limits
from monitor.tables import alarms, deliveries, runs
from monitor.times import iso

_POLL_SECONDS = 1.0
_CLAIM_SECONDS = 60.0
"""How long an alarm is its sender's alone; more than one attempt may take."""
_BACK_OFF, _LONGEST_BACK_OFF = 1.0, 300.0
"""Seconds before the second attempt, twice as many before each one after it, and at most."""
_REFUSALS = 5
"""Attempts after which an alarm that is refused each time is given up."""
TRYING, DELIVERED, GIVEN_UP = "trying", "delivered", "given up"


class Courier:
    """Sends the alarms of a database to one hook."""

    def __init__(self, database: Database, hook: Hook, limits: Limits, tell: Callable[[str], None]) -> None:
        """`tell` gets each complaint once."""
        self._database, self._hook, self._limits, self._tell = database, hook, limits, tell
        self._is_prepared = False
        self._told: set[str] = set()
        """Problems since an alarm arrived last."""
        self.pause = 0.0
        """Seconds for which there is no use in another attempt."""

    def deliver(self) -> int:
        """Send what is due, the oldest first, until the hook fails; how many arrived. Raises DatabaseError."""
        num_sent, self.pause = 0, 0.0
        if not self._is_prepared:
            prepare(self._database)
            self._is_prepared = True
        while not self.pause and (due := self._due()) is not None:
            if not self._claim(due):
                continue
            try:
                self._hook.send(message(due))
            except SendError as error:
                self._failed(due, error)
            else:
                self._settle(due, DELIVERED, None)
                num_sent += 1
                if self._told:
                    self._tell(f"{self._hook.name}: takes alarms again")
                    self._told = set()
        return num_sent

    def _due(self) -> Row[Any] | None:
        """The next alarm that this hook has not had, and that nobody else is at."""
        now = datetime.now(UTC)
        here = and_(deliveries.c.alarm_id == alarms.c.alarm_id, deliveries.c.hook == self._hook.kind)
        is_free = and_(deliveries.c.state == TRYING, deliveries.c.until < iso(now))
        asked = (
            select(alarms, runs.c.name, runs.c.uid, deliveries.c.until, deliveries.c.tries)
            .join(runs, runs.c.run_id == alarms.c.run_id)
            .join(deliveries, here, isouter=True)
            .where(alarms.c.time >= iso(now - timedelta(hours=self._limits.sent_within_hours)))
            .where(or_(deliveries.c.alarm_id.is_(None), is_free))
            .order_by(func.coalesce(deliveries.c.tries, 0), alarms.c.alarm_id)
            .limit(1)
        )
        with self._database.reading() as connection:
            return connection.execute(asked).one_or_none()

    def _claim(self, due: Row[Any]) -> bool:
        """Whether the alarm is this courier's to send."""
        until = iso(datetime.now(UTC) + timedelta(seconds=_CLAIM_SECONDS))
        with self._database.writing() as connection:
            if due.until is None:
                row = {"alarm_id": due.alarm_id, "hook": self._hook.kind, "state": TRYING, "until": until, "tries": 1}
                mine = upsert(connection, deliveries).values(**row).on_conflict_do_nothing()
            else:
                as_seen = (deliveries.c.state == TRYING, deliveries.c.until == due.until)
                mine = self._row(due).where(*as_seen).values(until=until, tries=due.tries + 1)
            return connection.execute(mine.returning(deliveries.c.alarm_id)).one_or_none() is not None

    def _row(self, due: Row[Any]) -> Update:
        return update(deliveries).where(deliveries.c.alarm_id == due.alarm_id, deliveries.c.hook == self._hook.kind)

    def _failed(self, due: Row[Any], error: SendError) -> None:
        tries = (due.tries or 0) + 1
        wait = min(_LONGEST_BACK_OFF, _BACK_OFF * 2.0 ** min(tries - 1, 20))
        if error.is_refusal and tries >= _REFUSALS:
            self._settle(due, GIVEN_UP, str(error))
            follows = "the alarm is on the page alone"
        else:
            self._settle(due, TRYING, str(error), wait)
            self.pause = wait
            follows = "tried again"
        if (problem := f"{error}; {follows}") not in self._told:
            self._told.add(problem)
            self._tell(f"{self._hook.name}: {problem}")

    def _settle(self, due: Row[Any], state: str, reason: str | None, wait: float = 0.0) -> None:
        until = iso(datetime.now(UTC) + timedelta(seconds=wait))
        with self._database.writing() as connection:
            connection.execute(self._row(due).values(state=state, until=until, reason=reason))


def carry(courier: Courier, stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Send what is due until told to stop. While the database is away the recorder says so, and this waits."""
    wait = _POLL_SECONDS
    while not stop.wait(max(wait, courier.pause)):
        try:
            courier.deliver()
            wait = _POLL_SECONDS
        except DatabaseAwayError:
            wait = min(_LONGEST_BACK_OFF, 2 * wait)
        except DatabaseError as error:
            tell(f"{error}. No alarm is sent")
            return


def start_couriers(
    database: Database, hooks: Sequence[Hook], limits: Limits, stop: threading.Event, tell: Callable[[str], None]
) -> None:
    """One thread for each hook, so that one that hangs holds up no other; they end with the process."""
    for hook in hooks:
        courier = Courier(database, hook, limits, tell)
        threading.Thread(target=carry, args=(courier, stop, tell), daemon=True).start()


def message(due: Any) -> dict[str, Any]:
    """An alarm as hooks get it; `id` is the same if it should come twice, `text` is all of it in one line."""
    place = "" if due.round is None else f", round {due.round}"
    whose = "" if due.site is None else f", {due.site}"
    text = f"{due.rule} in run {due.name}{whose}{place}: {due.words}"
    return {
        "id": f"{due.uid[:16]}-{due.identity[:16]}",
        "rule": due.rule,
        "run": due.name,
        "run_id": due.run_id,
        "site": due.site,
        "round": due.round,
        "time": due.time,
        "words": due.words,
        # Chat services take what stands in < > for a command of theirs.
        "text": " ".join(text.replace("<", "‹").replace(">", "›").split()),
    }
