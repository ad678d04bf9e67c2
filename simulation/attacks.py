"""One site of a simulation that sends what it must not: to see what guards and robust strategies are worth.

A malicious site does everything as the others do, its scores and counts included, but the update of its training: so
what a run ends with shows what the update did. The attacks are the plain ones of the literature on robust aggregation
(Blanchard et al. 2017, arXiv 1703.02757; Yin et al. 2018, arXiv 1803.01498), not the best that a site could think of.
"""

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, MessageType

from client.app import app as client_app
from client.normalisation import agreed_records
from client.records import SiteRecords, SiteSpec
from client.site import Site
from client.training import choose_device
from dipro_model import DiPro, DiProConfig
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, PROGRESSIONS, TASK_CLASSES, Task
from federation.agreement import Agreement
from federation.messages import Instruction, TrainReply
from federation.seeds import derive_seed
from federation.selection import Entries, model_entries
from federation.settings import RunSettings, SettingsError, from_run_config

App = Callable[[Message, Context], Message]

_OPPOSITE = np.arange(NOT_MENTIONED + 1, dtype=np.int8)
"""The label that the attack gives to each label of progression."""
_OPPOSITE[[PROGRESSIONS.index("worsened"), PROGRESSIONS.index("improved")]] = (
    PROGRESSIONS.index("improved"),
    PROGRESSIONS.index("worsened"),
)

SCALE = 100.0
"""Factor of the attack `scaled`."""


class AttackKind(StrEnum):
    """What a malicious site does to its update; w is the model that it trained, g the one that it was sent."""

    SIGN_FLIPPED = "sign_flipped"
    """g - (w - g): as much harm as the site's honest work would have done good."""
    SCALED = "scaled"
    """g + 100 (w - g)."""
    RANDOM = "random"
    """g + noise of the length of w - g."""
    LABEL_FLIPPED = "label_flipped"
    """w itself, trained on the wrong labels: the classes of the training part are turned round."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Which site is malicious, and how."""

    kind: AttackKind
    site: str
    """Name of the site."""


def malicious_app(spec: SiteSpec, attack: Attack, settings: RunSettings, folder: Path) -> App:
    """The Flower app of a malicious site, which keeps what it must remember in `folder`, as an honest one does.

    Raises SettingsError where the model travels in another form than whole: the attack is made on plain weights.
    """
    if settings.communication.codec != "fp32":
        raise SettingsError(
            "an attack is simulated on weights that travel whole: expected communication.codec=fp32, found "
            f"{settings.communication.codec}"
        )
    return _mislabelled(spec, folder) if attack.kind is AttackKind.LABEL_FLIPPED else _corrupting(attack)


def corrupted(kind: AttackKind, weights: np.ndarray, reference: np.ndarray, entries: Entries, seed: int) -> np.ndarray:
    """float32 [number]: what a malicious site sends in place of `weights`, having been sent `reference`.

    Only `entries` are changed. Frozen weights and running statistics stay honest: a variance below zero would give the
    reply away at once.
    """
    before = entries.take(reference).astype(np.float64)
    update = entries.take(weights) - before
    if kind is AttackKind.SIGN_FLIPPED:
        update = -update
    elif kind is AttackKind.SCALED:
        update = SCALE * update
    elif kind is AttackKind.RANDOM:
        noise = np.random.default_rng(seed).standard_normal(update.size)
        update = noise * (np.linalg.norm(update) / np.linalg.norm(noise))
    else:
        raise AssertionError(f"{kind} is no attack on an update")
    sent = weights.copy()
    entries.put(sent, (before + update).astype(np.float32))
    return sent


def with_flipped_labels(records: SiteRecords) -> SiteRecords:
    """A copy of a site's records in which the classes of the training part are turned round.

    Survivors died and the dead survived; the shortest stay is the longest; what worsened improved and the other way
    round. What did not change or is not mentioned stays so, and so do validation and test part.
    """
    flipped = copy(records)
    trained = {number for number, stay in records.stays.items() if stay.split == "train"}
    flipped.labels = {
        task: {
            number: len(TASK_CLASSES[Task(task)]) - 1 - label if number in trained else label
            for number, label in labels.items()
        }
        for task, labels in records.labels.items()
    }
    flipped.pairs = records.pairs.copy()
    inside = records.pairs.stay_id.isin(trained)
    for disease in DISEASES:
        flipped.pairs.loc[inside, disease] = _OPPOSITE[records.pairs.loc[inside, disease].to_numpy()]
    changed = records.pairs.loc[inside]
    images = set(zip(changed.first_dicom_id, changed.second_dicom_id, strict=True))
    flipped.region_progression = {
        pair: _OPPOSITE[labels] if pair in images else labels for pair, labels in records.region_progression.items()
    }
    return flipped


def _corrupting(attack: Attack) -> App:
    """The honest app, but for the update."""

    def answer(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type != MessageType.TRAIN or reply.has_error():
            return reply
        settings, _ = from_run_config(context.run_config)
        instruction, honest = Instruction.parse(message), TrainReply.parse(reply)
        seed = derive_seed(settings.seed, "attack", honest.site, honest.server_round)
        entries = _entries(settings.config())
        sent = corrupted(attack.kind, honest.weights, instruction.weights, entries, seed)
        return Message(replace(honest, weights=sent).record(), reply_to=message)

    return answer


def _mislabelled(spec: SiteSpec, folder: Path) -> App:
    """A site that joins and trains with flipped labels, and scores as the others do."""

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == MessageType.EVALUATE:
            return client_app(message, context)
        instruction = Instruction.parse(message)
        settings, _ = from_run_config(context.run_config)
        records = _flipped(spec, settings.model.crop_pixels)
        device = choose_device(str(context.node_config.get("device", "auto")))
        site = Site(records=records, settings=settings, device=device, folder=folder)
        if message.metadata.message_type == MessageType.QUERY:
            return Message(site.join(instruction, since=time.monotonic()).record(), reply_to=message)
        agreement = Agreement.from_json(instruction.agreement)
        site = replace(site, records=agreed_records(records, agreement), agreement=agreement)
        return Message(site.train(DiPro(settings.config()), instruction).record(), reply_to=message)

    return answer


@lru_cache(maxsize=1)
def _entries(config: DiProConfig) -> Entries:
    """Where the parameters that are trained lie in the flat array."""
    return model_entries(DiPro(config)).parameters


@lru_cache(maxsize=1)
def _flipped(spec: SiteSpec, crop_pixels: int) -> SiteRecords:
    return with_flipped_labels(SiteRecords(spec, crop_pixels=crop_pixels))
