"""Flower's grid in one process: messages go straight into a ClientApp, one node a site, in milliseconds."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

# Flower creates messages for the task that its process works on; a test's process is no task, so it says it is one.
from flwr.supercore.task_identity import TaskIdentity

Scalars = Mapping[str, bool | int | float | str]


class InProcessGrid(Grid):
    """Runs `app` for every message; node i has the node config `nodes[i]`.

    Replies come back in the order of `answer_order` (node numbers), so that a test can change who answers first.
    `tamper` may replace a reply.
    """

    def __init__(
        self,
        app: ClientApp | Callable[[Message, Context], Message],
        run_config: Scalars,
        nodes: Sequence[Scalars],
        *,
        answer_order: Sequence[int] | None = None,
        tamper: Callable[[Message], Message] = lambda reply: reply,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.app, self.tamper = app, tamper
        self.order = list(answer_order if answer_order is not None else range(len(nodes)))
        self.contexts = {
            1000 + number: Context(
                run_id=1, node_id=1000 + number, node_config=dict(node), state=RecordDict(), run_config=dict(run_config)
            )
            for number, node in enumerate(nodes)
        }

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        by_node = {message.metadata.dst_node_id: message for message in messages}
        return [self._answer(by_node[1000 + number]) for number in self.order if 1000 + number in by_node]

    def _answer(self, message: Message) -> Message:
        try:
            return self.tamper(self.app(message, self.contexts[message.metadata.dst_node_id]))
        except Exception as error:  # as Flower does: whatever a site raises becomes an error reply
            return Message(Error(code=0, reason=f"{type(error).__name__}: {error}"), reply_to=message)

    def set_run(self, run: object) -> None:
        raise AssertionError("not needed in one process")

    @property
    def run(self) -> object:
        raise AssertionError("not needed in one process")

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise AssertionError("the rounds create messages themselves")

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise AssertionError("the rounds send and receive in one call")

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise AssertionError("the rounds send and receive in one call")
