"""The coordinator's Flower app: runs the rounds and keeps the run's folder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dipro_model import DiPro
from dipro_model.vocabulary import SPLITS
from federation.audit import AUDIT, AuditError, AuditLog
from federation.code_digest import code_digest
from federation.differences import differences
from federation.initial import initial_model
from federation.later import Later
from federation.memory import keep_freed_memory
from federation.messages import EvaluateReply
from federation.pooled import PooledMetric, combine, pooled_metrics
from federation.prompt_pulls import pull_promptly
from federation.resume import EarlierRun, find_earlier
from federation.run_folder import POOLED, RUN, Measurement, RunError, RunRecord, history_line, read_history, read_run
from federation.run_writer import RunWriter, new_record
from federation.selection import model_entries
from federation.settings import RunSettings, SettingsError, from_run_config
from server.exchange import Traffic
from server.freight import Hold, hold
from server.joining import Federation, join_sites
from server.privacy import Private
from server.rounds import Round, Rounds, ServerState, Verdict
from server.site_privacy import SitePrivacy, noise_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings, files = from_run_config(context.run_config)
    if not files.folder:
        raise SettingsError("the run config lacks files.folder; name a folder for the run: -c 'files.folder=\"RUN\"'")
    pull_promptly()
    keep_freed_memory()
    with hold(Path(files.freight)) if files.freight else nullcontext() as freight:
        coordinate(grid, settings, Path(files.folder), freight=freight)


def coordinate(
    grid: Grid,
    settings: RunSettings,
    folder: Path,
    after_round: Callable[[], None] | None = None,
    *,
    freight: Hold | None = None,
) -> None:
    """Run the federation and leave a run folder, or go on with the same run that was interrupted in it.

    With `freight` large arrays travel beside the messages.

    A failure after the sites joined is recorded there, and raised. Raises RunError for a folder with another run or a
    finished one, and where the sites are not those that the run began with.
    """
    earlier = _earlier(folder, settings)
    audit = AuditLog(path=folder / AUDIT)
    begun = {"code": code_digest(), "settings": settings.model_dump(mode="json")}
    audit.write("run began" if earlier is None else "run goes on", **begun)
    memory = Memory() if earlier is None else Memory.of(earlier)
    try:
        noise = noise_of(settings) if settings.site_privacy.enabled else None
        federation = join_sites(grid, settings, audit, run=memory.server.run, freight=freight)
        record = _record(settings, federation)
        if earlier is not None:
            _require_same(earlier, record)
    except BaseException as error:
        _audit_failure(audit, error)
        raise
    traffic = federation.exchange.traffic
    traffic.add(memory.traffic)
    private = Private(settings, {} if earlier is None else earlier.record.more.get("privacy", {}))
    refused, monitor = list(memory.refused), Monitor(name=record.monitor, words=memory.monitored)
    writer = RunWriter(
        folder,
        record if earlier is None else replace(earlier.record, status="running"),
        earlier,
        agreement=federation.agreement.to_json(),
        later=Later(),
    )
    federation.exchange.before_asking = writer.settle
    writer.note(refused=refused, monitored=monitor.words)
    privacy: SitePrivacy | None = None

    def note_privacy() -> None:
        if privacy is not None:
            writer.note(site_privacy=privacy.report())

    def keep_unscored(aggregated: Round) -> None:
        remembered = Memory(
            replace(aggregated.state, unscored=aggregated.plain()),
            tuple(refused),
            monitor.words,
            _noted(traffic, aggregated.number),
        )
        note_privacy()
        writer.keep_unfinished(aggregated.number - 1, model, remembered.for_checkpoint())

    def keep(finished: Round) -> Verdict:
        refused.extend(
            {"round": finished.number, "site": site, "reason": reason.removeprefix(": ").strip()}
            for site, reason in finished.refused.items()
        )
        pooled = pooled_validation(finished.evaluated) if finished.evaluated else {}
        monitor.watch(finished, pooled)
        private.take(finished)
        if private.sites:
            writer.note(privacy=private.plain())
            audit.write("privacy", round=finished.number, **private.plain())
        for site, reason in sorted(finished.refused.items()):
            audit.write("refused", round=finished.number, site=site, reason=reason.removeprefix(": ").strip())
        writer.note(refused=refused, monitored=monitor.words, traffic=_noted(traffic, finished.number))
        note_privacy()
        if monitor.has_changed:
            writer.compare_anew()
        remembered = Memory(finished.state, tuple(refused), monitor.words, _noted(traffic, finished.number))
        measured = _measurements(finished, pooled, private.epsilons())
        writer.keep(finished.number, model, measured, monitor.value, remembered.for_checkpoint())
        writer.keep_among_last(finished.number, model, settings.federation.kept_rounds)
        if after_round is not None:
            writer.settle()
            after_round()
        return Verdict(
            best_round=writer.record.best_step or 0,
            is_last=_is_last(writer, finished.number, settings),
            together=_said_together(measured),
        )

    try:
        checkpoint = earlier.checkpoint if earlier else None
        model = initial_model(settings) if checkpoint is None else checkpoint.model()
        before = read_history(folder) if memory.server.finished else []
        if noise is not None:
            privacy = _privacy(federation, model, noise, folder)
        rounds = Rounds(federation, model, folder, memory.server, _said_together(before), privacy)
        done = memory.server.finished
        last = done if done and _is_last(writer, done, settings) else rounds.run(keep, keep_unscored)
        chosen, step = writer.chosen_model()
        replies = rounds.evaluate_finally(chosen, step)
        writer.note(traffic=_noted(traffic, last))
        note_privacy()
        if privacy is not None and privacy.ended:
            audit.write("budget spent", of="site_privacy", said=privacy.ended)
        audit.write("run ended", status="finished", rounds=last)
        writer.finish({reply.site: {split: part.metrics for split, part in reply.splits.items()} for reply in replies})
    except BaseException as error:
        _audit_failure(audit, error)
        writer.fail(error)
        raise


@dataclass(frozen=True)
class Memory:
    """What a run that goes on must know of its finished rounds, beside the model and what its folder says."""

    server: ServerState = field(default_factory=ServerState.fresh)
    refused: tuple[Mapping[str, object], ...] = ()
    """Replies that were not used: round, site, reason."""
    monitored: str = ""
    """What rounds are compared by, in words."""
    traffic: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, earlier: EarlierRun) -> "Memory":
        """From the last checkpoint; fresh where the run was interrupted before its first."""
        progress = None if earlier.checkpoint is None else earlier.checkpoint.progress
        if earlier.checkpoint is None or progress is None:
            return cls()
        kept = progress.training
        server = ServerState(
            run=kept["run"],
            finished=earlier.checkpoint.step,
            best_round=progress.best_step or 0,
            unscored=kept["unscored"],
            arrays={name: values.numpy() for name, values in kept["server"].items()},
        )
        return cls(server, tuple(kept["refused"]), kept["monitored"], kept["traffic"])

    def for_checkpoint(self) -> dict[str, object]:
        """Plain values and tensors."""
        return {
            "run": self.server.run,
            "server": {name: torch.from_numpy(values.copy()) for name, values in self.server.arrays.items()},
            "unscored": self.server.unscored,
            "refused": list(self.refused),
            "monitored": self.monitored,
            "traffic": dict(self.traffic),
        }


def _record(settings: RunSettings, federation: Federation) -> RunRecord:
    names, agreement = list(federation.joined), federation.agreement
    more: dict[str, object] = {"agreement": {"digest": agreement.digest, "notes": agreement.report()}}
    if settings.personal.method != "none":
        more["personal"] = True
    if settings.secure_aggregation.enabled:
        more["secure_aggregation"] = settings.secure_aggregation.described(settings.federation.sites_a_round)
    return new_record(
        settings, kind="federated", name="federated", step_unit="round", sites=names, trained_on=names, **more
    )


def _privacy(federation: Federation, model: DiPro, noise: float, folder: Path) -> SitePrivacy:
    """What the sites' updates are let through by: of the weights what is trained, of batch norm no statistics."""
    entries = model_entries(model)
    counts = {site: joined.num_samples[SPLITS[0]] for site, joined in federation.joined.items()}
    released = entries.trained.without(entries.statistics)
    privacy = SitePrivacy(federation.settings, noise, counts, released, folder)
    privacy.warn()
    return privacy


def _earlier(folder: Path, settings: RunSettings) -> EarlierRun | None:
    """The run that was interrupted in a folder; which sites it has shows when they have joined."""
    if not (folder / RUN).is_file():
        return None
    found = read_run(folder)
    asked = new_record(
        settings,
        kind="federated",
        name=found.name,
        step_unit="round",
        sites=found.sites,
        trained_on=found.trained_on,
    )
    earlier = find_earlier(folder, asked, settings)
    if earlier is not None and earlier.is_finished:
        raise RunError(f"{folder}: the run in this folder is finished; choose another folder for a new one")
    if (began := found.more.get("code_digest")) != code_digest():
        raise RunError(
            f"{folder}: the run began with other code ({str(began)[:12]}, this is {code_digest()[:12]}): go on with "
            "that version, or begin a new run"
        )
    return earlier


def _require_same(earlier: EarlierRun, record: RunRecord) -> None:
    """Raises RunError where other sites joined, or the same ones with other training patients or values."""
    began, came = earlier.record, record
    different = differences(
        {"sites": began.sites, "agreement": began.more.get("agreement", {}).get("digest")},
        {"sites": came.sites, "agreement": came.more["agreement"]["digest"]},
    )
    if different:
        raise RunError(
            f"the run cannot go on with other sites or other data than it began with: {'; '.join(different)}; let the "
            "sites of the run join with the cohorts that they had, or begin a new run"
        )


def _is_last(writer: RunWriter, finished: int, settings: RunSettings) -> bool:
    federation = settings.federation
    return federation.is_scored(finished) and writer.steps_without_gain(finished) >= federation.patience


def _audit_failure(audit: AuditLog, error: BaseException) -> None:
    with suppress(OSError, AuditError):  # the error that ended the run is the one to be seen
        audit.write("run ended", status="failed", reason=f"{type(error).__name__}: {error}")


def _noted(traffic: Traffic, rounds: int) -> dict[str, int]:
    """Bytes so far of joining, training and evaluation, for run.json."""
    return {"to_sites_bytes": traffic.to_sites, "from_sites_bytes": traffic.from_sites, "rounds": rounds}


LARGEST_ERROR = 0.05
"""A pooled metric that may be off by more, because cells of few patients hide where scores lie, is not used."""


_POOLED_WORDS = "all validation patients together"


class Monitor:
    """What the best round is chosen by: the metric of all validation patients together, where their counts allow.

    Until these allow it for the first time it is the sites' mean, weighted by validation samples. A mean of AUPRCs is
    not the AUPRC of the pooled patients, so rounds before that one no longer compare, and a later round of which the
    pooled metric is not known well enough counts for nothing.
    """

    def __init__(self, *, name: str, words: str = "") -> None:
        """`words` as they were after the rounds before, where a run goes on."""
        self.name, self.words = name, words
        self.value: float | None = None
        """Of the last round; None where it is undefined at every site, or the round was not scored."""
        self.has_changed = False
        """Whether the last round was the first of which the pooled metric is used."""
        self._is_pooled = words.startswith(_POOLED_WORDS)

    def watch(self, finished: Round, pooled: Mapping[str, PooledMetric]) -> None:
        if not finished.evaluated:
            self.value, self.has_changed = None, False
            return
        metric = pooled[self.name]
        self.has_changed = not self._is_pooled and _usable(metric)
        self._is_pooled = self._is_pooled or self.has_changed
        if self.has_changed:
            since = "" if finished.number == 1 else f", from round {finished.number} on"
            self.words = f"{_POOLED_WORDS}{since}"
        if self._is_pooled:
            self.value = metric.value if _usable(metric) else None
        else:
            error = "undefined" if metric.error is None else f"known to ± {metric.error:.2f} only"
            self.words = f"mean of the sites' own: {metric.reason or f'the one of all patients is {error}'}"
            self.value = mean_monitor(self.name, finished.evaluated)


def _usable(metric: PooledMetric) -> bool:
    return metric.error is not None and metric.error <= LARGEST_ERROR


def mean_monitor(monitor: str, replies: Sequence[EvaluateReply]) -> float | None:
    """Mean of the sites' validation monitors, weighted by their validation samples; None where none is defined."""
    results = [reply.splits["val"] for reply in replies]
    defined = [(value, part.num_samples) for part in results if (value := part.metrics[monitor]) is not None]
    total = sum(count for _, count in defined)
    return sum(value * count for value, count in defined) / total if total else None


def pooled_validation(replies: Sequence[EvaluateReply]) -> dict[str, PooledMetric]:
    """Metrics of the validation patients of these sites as one set, each with the bounds that its counts allow."""
    return pooled_metrics(combine(reply.counts["val"] for reply in replies))


def _measurements(
    finished: Round, pooled: Mapping[str, PooledMetric], epsilons: Mapping[str, float]
) -> list[Measurement]:
    """Every site's line of the round, then those of all sites together; of a private run with what it has spent."""
    spent = {site: {"epsilon": epsilon} for site, epsilon in epsilons.items()}
    trained = [
        replace(reply.result(), metrics=spent.get(reply.site, {})).measured(
            step=finished.number, site=reply.site, split=SPLITS[0], seconds=reply.seconds
        )
        for reply in finished.trained
    ]
    evaluated = [
        part.measured(step=finished.number, site=reply.site, split=split, seconds=reply.seconds)
        for reply in finished.evaluated
        for split, part in reply.splits.items()
    ]
    values = {name: metric.value if _usable(metric) else None for name, metric in pooled.items()}
    most = {"epsilon": max(epsilons.values())} if epsilons else {}
    together = [_together(trained, most), *([_together(evaluated, values)] if evaluated else [])]
    return [*trained, *evaluated, *together]


def _said_together(measured: Sequence[Measurement]) -> str:
    """The last line of all sites' validation patients together, for the sites; empty where there is none."""
    lines = [each for each in measured if (each.site, each.split) == (POOLED, "val")]
    return history_line(lines[-1]) if lines else ""


def _together(lines: Sequence[Measurement], metrics: Mapping[str, float | None]) -> Measurement:
    """One split of one round over the patients of all sites: losses are means of those told, metrics given."""
    told = [line for line in lines if line.loss is not None]
    count = sum(line.num_samples for line in told)

    def mean(values: Iterable[float]) -> float:
        return sum(value * line.num_samples for value, line in zip(values, told, strict=True)) / count

    first = lines[0]
    return Measurement(
        step=first.step,
        site=POOLED,
        split=first.split,
        loss=mean(line.loss or 0.0 for line in told) if told else None,
        parts={name: mean(line.parts[name] for line in told) for name in told[0].parts} if told else {},
        metrics=metrics,
        num_samples=sum(line.num_samples for line in lines),
        seconds=max(line.seconds for line in lines),
    )
