"""What a site measures itself, round by round, for the people of the site; it stays there."""

import math
from collections.abc import Iterator
from pathlib import Path

from federation.messages import EvaluateReply, Instruction, JoinReply, MessageError, TrainReply
from federation.run_folder import HISTORY, OWN_ROUNDS, Measurement, RunError, append_history, parse_measurement


def keep_measurements(folder: Path, instruction: Instruction, reply: JoinReply | TrainReply | EvaluateReply) -> None:
    """Add what a reply says, before the policy takes metrics out, and what the server says of all sites together.

    A loss that is not finite is left out. Raises MessageError where the server says it in another form, StorageError
    where the disk takes no more.
    """
    own = [each for each in _own(instruction, reply) if _is_finite(each)]
    if own:
        place = folder / OWN_ROUNDS / instruction.run
        place.mkdir(parents=True, exist_ok=True)
        _end_line(place / HISTORY)
        # Only for people to look at: a line that a power cut takes is not worth the wait for the disk.
        append_history(place, [*_together(instruction), *own], durably=False)


def _own(instruction: Instruction, reply: JoinReply | TrainReply | EvaluateReply) -> Iterator[Measurement]:
    number = instruction.server_round
    if isinstance(reply, TrainReply):
        yield reply.result().measured(step=number, site=reply.site, split="train", seconds=reply.seconds)
        if reply.scored is not None:  # of the model that the round began with
            yield from _evaluated(reply.scored, number - 1)
    elif isinstance(reply, EvaluateReply):
        # The chosen model scores the training part too, but that round's line of it is of the work.
        yield from _evaluated(reply, number, but="train" if instruction.final else None)


def _evaluated(reply: EvaluateReply, number: int, but: str | None = None) -> Iterator[Measurement]:
    for split, part in reply.splits.items():
        if split == but:
            continue
        yield part.measured(step=number, site=reply.site, split=split, seconds=reply.seconds)


def _together(instruction: Instruction) -> list[Measurement]:
    if not instruction.together:
        return []
    try:
        return [parse_measurement(instruction.together, "what all sites reach together")]
    except RunError as error:
        raise MessageError(str(error)) from None


def _is_finite(measurement: Measurement) -> bool:
    return all(math.isfinite(value) for value in (measurement.loss or 0.0, *measurement.parts.values()))


def _end_line(path: Path) -> None:
    """A line that a killed process did not finish must not take the next one along."""
    if path.is_file() and (size := path.stat().st_size):
        with path.open("r+b") as file:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
