"""A federated run in one process: messages go straight into the ClientApp, one site after the other.

The same client and server functions as in Flower's simulation, without its start-up, its processes and its copies: the
cost of a round is the sites' work and a few passes over the weights.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

# Flower creates messages for the task that its process works on; this process is no task, so it says it is one.
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as client_app
from client.records import SiteSpec
from federation.run_folder import RUN, RunRecord, read_run, write_run
from federation.settings import RunFiles, RunSettings, to_run_config
from server.app import coordinate
from simulation.attacks import App, Attack, malicious_app
from simulation.flower import (
    OnRound,
    collect,
    finished_record,
    for_sites,
    tell_new_rounds,
    write_identities,
    write_sites,
)

Scalars = Mapping[str, bool | int | float | str]


def simulate_in_process(
    specs: Sequence[SiteSpec],
    settings: RunSettings,
    folder: Path,
    *,
    name: str | None = None,
    attack: Attack | None = None,
    on_round: OnRound = lambda measurements: None,
) -> RunRecord:
    """Run the federation of these sites here, or go on with it, and leave a run folder as Flower's simulation does.

    All threads of the process serve the site at work. `name` is what reports call the model. With an attack one of the
    sites sends what it must not, and run.json says so, under `attack`. Raises MessageError where the run failed.
    """
    settings, folder = for_sites(settings, specs), folder.resolve()
    impostors = {} if attack is None else _impostors(specs, attack, settings, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_sites(specs, folder)
    write_identities(specs, settings, folder)
    config = to_run_config(settings, RunFiles(folder=str(folder), sites=str(folder / "sites.json")))
    nodes = [{"partition-id": number} for number in range(len(specs))]
    grid = InProcessGrid(client_app, config, nodes, impostors=impostors)
    tell = tell_new_rounds(folder, on_round)
    try:
        coordinate(grid, settings, folder, after_round=tell)
    finally:
        _note(folder, name, attack)
    record = finished_record(folder)
    collect(specs, folder)
    return record


def _impostors(specs: Sequence[SiteSpec], attack: Attack, settings: RunSettings, folder: Path) -> dict[int, App]:
    """The malicious site's own app, by the number of its node. Raises ValueError where no site has that name."""
    names = [spec.name for spec in specs]
    if attack.site not in names:
        raise ValueError(f"attack of {attack.site}: expected one of the sites {', '.join(names)}")
    number = names.index(attack.site)
    own = folder / "sites" / attack.site
    return {number: malicious_app(specs[number], attack, settings, own)}


def _note(folder: Path, name: str | None, attack: Attack | None) -> None:
    """Write into run.json, where there is one, what the server does not know."""
    if not (folder / RUN).is_file():
        return
    record = read_run(folder)
    more = {} if attack is None else {"attack": {"site": attack.site, "kind": str(attack.kind)}}
    write_run(folder, replace(record, name=name or record.name, more={**record.more, **more}))


class InProcessGrid(Grid):
    """Runs `app` for every message; node i has the node config `nodes[i]`.

    A message waits until its reply is pulled, and one pull runs one site: no more than one reply lies in memory that
    nobody has read. Sites answer in the order of `answer_order` (node numbers), which a test may change; `tamper` may
    replace a reply, or give None for a site that does not answer. `impostors` are other apps, by node number.
    """

    def __init__(
        self,
        app: ClientApp | App,
        run_config: Scalars,
        nodes: Sequence[Scalars],
        *,
        answer_order: Sequence[int] | None = None,
        tamper: Callable[[Message], Message | None] = lambda reply: reply,
        impostors: Mapping[int, App] | None = None,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.app, self.tamper = app, tamper
        self.impostors = {1000 + number: own for number, own in (impostors or {}).items()}
        self.order = [1000 + number for number in (answer_order if answer_order is not None else range(len(nodes)))]
        self.contexts = {
            1000 + number: Context(
                run_id=1, node_id=1000 + number, node_config=dict(node), state=RecordDict(), run_config=dict(run_config)
            )
            for number, node in enumerate(nodes)
        }
        self._waiting: dict[str, Message] = {}
        self._numbers = itertools.count(1)

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(f"message {next(self._numbers)}")
            # A reply names the message it answers by this.
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The reply of the next site, or nothing where all that are asked for have answered or will not."""
        asked = [each for each in message_ids if each in self._waiting]
        asked.sort(key=lambda each: self.order.index(self._waiting[each].metadata.dst_node_id))
        if not asked:
            return []
        reply = self._answer(self._waiting.pop(asked[0]))
        return [] if reply is None else [reply]

    def _answer(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        try:
            return self.tamper(self.impostors.get(node, self.app)(message, self.contexts[node]))
        except Exception as error:  # as Flower does: whatever a site raises becomes an error reply
            return Message(Error(code=0, reason=f"{type(error).__name__}: {error}"), reply_to=message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise AssertionError("the rounds push and pull")

    def set_run(self, run: object) -> None:
        raise AssertionError("not needed in one process")

    @property
    def run(self) -> Any:
        raise AssertionError("not needed in one process")

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise AssertionError("the rounds create messages themselves")
