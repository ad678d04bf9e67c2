"""The messages of the light visits to a site, in which keys, shares and signatures pass; no model travels in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from flwr.app import ConfigRecord, Message, RecordDict

from federation.messages import CONFIG, MessageError, _complete, _run_name
from federation.secure.errors import SecureError
from federation.secure.steps import MaskStep, Said, Step, Steps, read

MASKS = "query.masks"
"""Flower's message type that they travel as."""
_MASKS = "masks"
"""Key, in an instruction to train, of what the site masks its update with."""
S = TypeVar("S", bound=Said)


@dataclass(frozen=True, kw_only=True)
class MasksQuestion:
    """What a site is asked in one visit."""

    run: str
    steps: tuple[Step, ...]

    def record(self) -> RecordDict:
        text = Steps(steps=self.steps).model_dump_json()
        return RecordDict({CONFIG: ConfigRecord({"run": self.run, "steps": text})})

    @classmethod
    @_complete("a question about masks")
    def parse(cls, message: Message) -> "MasksQuestion":
        config = message.content.config_records[CONFIG]
        steps = read(Steps, cast(str, config["steps"]), "the server").steps
        return cls(run=_run_name(config["run"]), steps=steps)


@dataclass(frozen=True, kw_only=True)
class MasksReply:
    """A site's answers, as JSON, in the order of the steps."""

    site: str
    answers: tuple[str, ...]

    def record(self) -> RecordDict:
        return RecordDict({CONFIG: ConfigRecord({"site": self.site, "answers": list(self.answers)})})

    @classmethod
    @_complete("a reply about masks")
    def parse(cls, message: Message) -> "MasksReply":
        config = message.content.config_records[CONFIG]
        answers = tuple(cast(list[str], config["answers"]))
        if not all(isinstance(each, str) for each in answers):
            raise MessageError("expected answers in JSON, found others")
        return cls(site=cast(str, config["site"]), answers=answers)

    def read(self, kinds: Sequence[type[Said]]) -> list[Said]:
        """The answers, each of its kind. Raises SecureError."""
        if len(kinds) != len(self.answers):
            raise SecureError(f"{self.site}: expected {len(kinds)} answers, found {len(self.answers)}")
        return [read(kind, text, self.site) for kind, text in zip(kinds, self.answers, strict=True)]


def with_masks(instruction: RecordDict, step: MaskStep) -> RecordDict:
    """An instruction to train that many sites share, with what one of them masks its update with."""
    return RecordDict({**instruction, _MASKS: ConfigRecord({_MASKS: step.model_dump_json()})})


def masks_of(content: RecordDict) -> MaskStep | None:
    """What an instruction to train says of masks. Raises SecureError."""
    if _MASKS not in content:
        return None
    return read(MaskStep, str(content.config_records[_MASKS].get(_MASKS, "")), "the server")
