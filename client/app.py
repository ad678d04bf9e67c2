"""The hospital's Flower app: opens the site's own cohort and answers join, train and evaluate."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.attempts import Attempts
from client.freight import carrier
from client.gaps import read_gaps
from client.masked_update import MaskedUpdate
from client.masking import Masking
from client.normalisation import agreed_records
from client.policy import PolicyError, SitePolicy, load_policy
from client.privacy_ledger import LedgerError
from client.private_statistics import with_own_source
from client.records import SiteRecords, SiteSpec
from client.site import Site
from client.site_history import keep_measurements
from client.site_state import SiteState
from client.training import choose_device
from dipro_model import DiPro, DiProConfig
from federation.agreement import Agreement
from federation.audit import AUDIT, AuditLog
from federation.code_digest import code_digest
from federation.messages import (
    EVALUATE,
    JOIN,
    TRAIN,
    EvaluateReply,
    Instruction,
    JoinReply,
    MessageError,
    TrainReply,
    described,
)
from federation.secure.identity import IDENTITY, Identity
from federation.secure.messages import MasksQuestion, MasksReply, masks_of
from federation.secure.steps import MaskStep, Said, UnmaskAnswer
from federation.settings import RunFiles, RunSettings, SettingsError, from_run_config
from federation.site_statistics import AgreementError
from federation.weights import blank_model, layout_digest

app = ClientApp()

_OF_SETTINGS = (MessageError, PolicyError, SettingsError, AgreementError)
"""Errors that tell of settings and of nothing else."""


@app.query()
def join(message: Message, context: Context) -> Message:
    start = time.monotonic()
    return _answer(message, context, JOIN, lambda site, asked: site.join(asked, since=start))


@app.query("masks")
def masks(message: Message, context: Context) -> Message:
    """Answer the steps of secure aggregation in which no model travels, and write down what leaves."""
    way = carrier(context, message.content)
    if way is not None:
        message.content = way.load(message.content)
    question = MasksQuestion.parse(message)
    settings, spec, folder = _place(context)
    log = None if folder is None else AuditLog(path=folder / AUDIT)
    asked: dict[str, object] = {"asked": " ".join(each.step for each in question.steps), "run": question.run}
    asked["round"] = question.steps[0].round
    try:
        _policy(context).check_masked(settings)
        masking = _masking(context, settings, spec.name, folder, question.run)
        answers = [masking.answer(step) for step in question.steps]
    except Exception as error:
        if log is not None:
            log.write("refused", **asked, reason=_reason(error))
        raise
    content = MasksReply(site=spec.name, answers=tuple(each.model_dump_json() for each in answers)).record()
    if log is not None:
        log.write("left", **asked, **_revealed(answers), **described(content))
    if way is not None:
        content = way.unload(content)
        way.close()
    return Message(content, reply_to=message)


def _revealed(answers: Sequence[Said]) -> dict[str, list[str]]:
    """Whose masks a site has helped to take away, for its audit log: survivors' own, and what others shared."""
    unmasked = [each for each in answers if isinstance(each, UnmaskAnswer)]
    named = {"self_masks": [site for each in unmasked for site in sorted(each.self_masks)]}
    named["mask_keys"] = [site for each in unmasked for site in sorted(each.mask_keys)]
    return named if unmasked else {}


@app.train()
def train(message: Message, context: Context) -> Message:
    return _answer(message, context, TRAIN, lambda site, asked: site.train(_model(asked, site.settings), asked))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return _answer(message, context, EVALUATE, lambda site, asked: site.evaluate(_model(asked, site.settings), asked))


def _answer(
    message: Message,
    context: Context,
    what: str,
    work: Callable[[Site, Instruction], JoinReply | TrainReply | EvaluateReply],
) -> Message:
    """Do what was asked, and write into the site's audit log what leaves it, or why nothing does."""
    try:
        way = carrier(context, message.content)
        if way is not None:
            message.content = way.load(message.content)
        instruction = Instruction.parse(message)
        site = _site(context, instruction, masks_of(message.content))
    except Exception as error:  # before it is known which run it is of
        if folder := context.node_config.get("folder"):
            AuditLog(path=Path(str(folder)) / AUDIT).write("refused", asked=what, reason=_reason(error))
        raise
    asked = {"asked": what, "run": instruction.run, "round": instruction.server_round}
    log = None if site.folder is None else AuditLog(path=site.folder / AUDIT)
    try:
        _check_code(instruction)
        policy = _policy(context)
        policy.check(site.settings, site.num_patients, datetime.now())
        site = replace(site, budget=policy.budget)
        _bound_gpu(policy, site.device)
        content = None if site.masked is None else site.masked.find_reply()
        if content is None:
            reply = work(site, instruction)
            if site.folder is not None:
                keep_measurements(site.folder, instruction, reply)
            content = _let_out(policy, reply).record()
            content = content if site.masked is None else site.masked.keep_reply(content)
    except Exception as error:
        if log is not None:
            log.write("refused", **asked, reason=_reason(error))
        if site.settings.patient_privacy.enabled and not isinstance(error, _OF_SETTINGS):
            # A private run's site says that it refuses; why may be a patient, or what was spent on other runs.
            raise LedgerError("this site does not do this; its own audit log says why") from None
        raise
    if log is not None:
        is_final = {"final": True} if instruction.final else {}
        is_final |= {"masked": True} if site.masked is not None else {}
        log.write("left", **asked, **is_final, code=instruction.code_digest, **described(content))
    if way is not None:
        content = way.unload(content)
        way.close()
    return Message(content, reply_to=message)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _policy(context: Context) -> SitePolicy:
    """The site's policy; a node that names none, as in a simulation, has the one that allows everything."""
    path = context.node_config.get("policy")
    return load_policy(Path(str(path))) if path else SitePolicy(minimum_cell=1)


def _bound_gpu(policy: SitePolicy, device: torch.device) -> None:
    if device.type == "cuda" and policy.gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(policy.gpu_share, device)


def _let_out(
    policy: SitePolicy, reply: JoinReply | TrainReply | EvaluateReply
) -> JoinReply | TrainReply | EvaluateReply:
    """The reply without the metrics that the policy keeps back."""
    if isinstance(reply, TrainReply) and reply.scored is not None:
        return replace(reply, scored=cast(EvaluateReply, _let_out(policy, reply.scored)))
    if not isinstance(reply, EvaluateReply):
        return reply
    splits = {
        split: replace(
            part, metrics={name: value if policy.lets_out(name) else None for name, value in part.metrics.items()}
        )
        for split, part in reply.splits.items()
    }
    return replace(reply, splits=splits)


def _check_code(instruction: Instruction) -> None:
    if instruction.code_digest != code_digest():
        raise MessageError(
            "the server and this site run different code "
            f"({instruction.code_digest[:12]} and {code_digest()[:12]}); install the same version at both"
        )


def _model(instruction: Instruction, settings: RunSettings) -> DiPro:
    model = _network(settings.config())
    if instruction.layout_digest != _layout(settings.config()):
        raise MessageError("the server's model has other tensors than this site's settings give; use the same settings")
    return model


@lru_cache(maxsize=1)
def _network(config: DiProConfig) -> DiPro:
    """The network of a run, which every instruction fills with its weights: making one takes longer than that."""
    return blank_model(lambda: DiPro(config))


@lru_cache(maxsize=1)
def _layout(config: DiProConfig) -> str:
    return layout_digest(_network(config))


def _place(context: Context) -> tuple[RunSettings, SiteSpec, Path | None]:
    """The run's settings, this node's site, and the folder where it keeps what is its own.

    Its own node config says where its cohort is, in a simulation the list of sites does. A node that has a cohort of
    its own is never led to another folder by the run.
    """
    settings, files = from_run_config(context.run_config)
    is_deployed = bool(context.node_config.get("cohort")) or not files.sites
    spec, folder = _deployed(context) if is_deployed else _simulated(context, files)
    return settings, spec, folder


def _masking(context: Context, settings: RunSettings, site: str, folder: Path | None, run: str) -> Masking:
    """What masks this node's updates, with its long-term keys. Raises SettingsError, SecureError."""
    if not settings.secure_aggregation.enabled:
        raise SettingsError("this run has no secure aggregation (secure_aggregation.enabled); expected no masks")
    place = str(context.node_config.get("identity", "")) or (str(folder / IDENTITY) if folder else "")
    if not place:
        raise SettingsError(
            "this node's configuration lacks identity, the folder of its signing key: start the site with the "
            "`dipro-fed site start` of this version"
        )
    return Masking(
        site=site,
        attempts=Attempts(state=SiteState(site=site, folder=folder, run=run)),
        identity=Identity.load(Path(place)),
        settings=settings.secure_aggregation,
        num_asked=settings.federation.sites_a_round,
    )


def _site(context: Context, instruction: Instruction, step: MaskStep | None) -> Site:
    """The site of this node, with what masks its update where the instruction says so."""
    settings, spec, folder = _place(context)
    masked = None
    if step is not None:
        masked = MaskedUpdate(masking=_masking(context, settings, spec.name, folder, instruction.run), step=step)
    agreement = _agreement(instruction.agreement) if instruction.agreement else None
    pixels = settings.model.crop_pixels
    records = _records(spec, pixels)
    if agreement is not None:
        known = agreement
        if settings.patient_privacy.enabled:
            known = with_own_source(agreement, records, SiteState(site=spec.name, folder=folder, run=instruction.run))
        records = _agreed(spec, pixels, known.to_json())
    return Site(
        records=records,
        settings=settings,
        device=choose_device(str(context.node_config.get("device", "auto"))),
        agreement=agreement,
        withhold=tuple(
            item.strip() for item in str(context.node_config.get("withhold", "")).split(",") if item.strip()
        ),
        folder=folder,
        masked=masked,
    )


def _deployed(context: Context) -> tuple[SiteSpec, Path | None]:
    missing = [key for key in ("site", "cohort") if not context.node_config.get(key)]
    if missing:
        raise SettingsError(
            f"this node's configuration lacks {' and '.join(missing)}; start the SuperNode with "
            '--node-config \'site="NAME" cohort="FOLDER"\''
        )
    folder = context.node_config.get("folder")
    spec = SiteSpec(name=str(context.node_config["site"]), cohort=Path(str(context.node_config["cohort"])))
    return spec, Path(str(folder)) if folder else None


def _simulated(context: Context, files: RunFiles) -> tuple[SiteSpec, Path]:
    sites = json.loads(Path(files.sites).read_text())
    site = sites[int(cast(int, context.node_config["partition-id"]))]
    subjects = None if site["subjects"] is None else tuple(site["subjects"])
    gaps = read_gaps(site["gaps"])
    spec = SiteSpec(name=site["name"], cohort=Path(site["cohort"]), subjects=subjects, gaps=gaps)
    return spec, Path(site["folder"])


@lru_cache(maxsize=128)
def _records(spec: SiteSpec, crop_pixels: int) -> SiteRecords:
    """A simulation's workers live on between messages: they read a site once. A deployed site is a new process."""
    return SiteRecords(spec, crop_pixels=crop_pixels)


@lru_cache(maxsize=128)
def _agreed(spec: SiteSpec, crop_pixels: int, agreement: str) -> SiteRecords:
    return agreed_records(_records(spec, crop_pixels), _agreement(agreement))


@lru_cache(maxsize=1)
def _agreement(text: str) -> Agreement:
    return Agreement.from_json(text)
