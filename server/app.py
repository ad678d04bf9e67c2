"""The coordinator's Flower app: runs the rounds and keeps the run's folder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dipro_model.vocabulary import SPLITS
from federation.audit import AUDIT, AuditError, AuditLog
from federation.code_digest import code_digest
from federation.initial import initial_model
from federation.messages import EvaluateReply
from federation.pooled import PooledMetric, combine, pooled_metrics
from federation.run_folder import POOLED, Measurement
from federation.run_writer import RunWriter, new_record
from federation.settings import RunSettings, SettingsError, from_run_config
from server.exchange import Traffic
from server.joining import join_sites
from server.rounds import Round, Rounds, Verdict

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings, files = from_run_config(context.run_config)
    if not files.folder:
        raise SettingsError("the run config lacks files.folder; name a folder for the run: -c 'files.folder=\"RUN\"'")
    coordinate(grid, settings, Path(files.folder))


def coordinate(grid: Grid, settings: RunSettings, folder: Path, after_round: Callable[[], None] = lambda: None) -> None:
    """Run the federation and leave a run folder; a failure after the sites joined is recorded there, and raised."""
    audit = AuditLog(path=folder / AUDIT)
    audit.write("run began", code=code_digest(), settings=settings.model_dump(mode="json"))
    try:
        federation = join_sites(grid, settings, audit)
    except BaseException as error:
        _audit_failure(audit, error)
        raise
    names, agreement, traffic = list(federation.joined), federation.agreement, federation.exchange.traffic
    record = new_record(settings, kind="federated", name="federated", step_unit="round", sites=names, trained_on=names)
    writer = RunWriter(folder, record, agreement=agreement.to_json())
    writer.note(agreement={"digest": agreement.digest, "notes": agreement.report()})
    if settings.personal.method != "none":
        writer.note(personal=True)
    refused: list[dict[str, object]] = []
    monitor = Monitor(name=writer.record.monitor)

    def keep(finished: Round) -> Verdict:
        refused.extend(
            {"round": finished.number, "site": site, "reason": reason.removeprefix(": ").strip()}
            for site, reason in finished.refused.items()
        )
        pooled = pooled_validation(finished.evaluated)
        monitor.watch(finished, pooled)
        for site, reason in sorted(finished.refused.items()):
            audit.write("refused", round=finished.number, site=site, reason=reason.removeprefix(": ").strip())
        writer.note(refused=refused, monitored=monitor.words, traffic=_noted(traffic, finished.number))
        state = {"server": {name: torch.from_numpy(values.copy()) for name, values in finished.state.items()}}
        if monitor.has_changed:
            writer.compare_anew()
        writer.keep(finished.number, model, _measurements(finished, pooled), monitor.value, state)
        writer.keep_among_last(finished.number, model, settings.federation.kept_rounds)
        after_round()
        patience = settings.federation.patience
        return Verdict(
            best_round=writer.record.best_step or 0,
            is_last=writer.steps_without_gain(finished.number) >= patience,
        )

    try:
        model = initial_model(settings)
        rounds = Rounds(federation, model, folder)
        last = rounds.run(keep)
        chosen, step = writer.chosen_model()
        replies = rounds.evaluate_finally(chosen, step)
        writer.note(traffic=_noted(traffic, last))
        audit.write("run ended", status="finished", rounds=last)
        writer.finish({reply.site: {split: part.metrics for split, part in reply.splits.items()} for reply in replies})
    except BaseException as error:
        _audit_failure(audit, error)
        writer.fail(error)
        raise


def _audit_failure(audit: AuditLog, error: BaseException) -> None:
    with suppress(OSError, AuditError):  # the error that ended the run is the one to be seen
        audit.write("run ended", status="failed", reason=f"{type(error).__name__}: {error}")


def _noted(traffic: Traffic, rounds: int) -> dict[str, int]:
    """Bytes so far of joining, training and evaluation, for run.json."""
    return {"to_sites_bytes": traffic.to_sites, "from_sites_bytes": traffic.from_sites, "rounds": rounds}


LARGEST_ERROR = 0.05
"""A pooled metric that may be off by more, because cells of few patients hide where scores lie, is not used."""


class Monitor:
    """What the best round is chosen by: the metric of all validation patients together, where their counts allow.

    Until these allow it for the first time it is the sites' mean, weighted by validation samples. A mean of AUPRCs is
    not the AUPRC of the pooled patients, so rounds before that one no longer compare, and a later round of which the
    pooled metric is not known well enough counts for nothing.
    """

    def __init__(self, *, name: str) -> None:
        self.name = name
        self.value: float | None = None
        """Of the last round; None where it is undefined at every site."""
        self.words = ""
        """What it is, for run.json."""
        self.has_changed = False
        """Whether the last round was the first of which the pooled metric is used."""
        self._is_pooled = False

    def watch(self, finished: Round, pooled: Mapping[str, PooledMetric]) -> None:
        metric = pooled[self.name]
        self.has_changed = not self._is_pooled and _usable(metric)
        self._is_pooled = self._is_pooled or self.has_changed
        if self.has_changed:
            since = "" if finished.number == 1 else f", from round {finished.number} on"
            self.words = f"all validation patients together{since}"
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


def _measurements(finished: Round, pooled: Mapping[str, PooledMetric]) -> list[Measurement]:
    """Every site's line of the round, then those of all sites together."""
    trained = [
        reply.result().measured(step=finished.number, site=reply.site, split=SPLITS[0], seconds=reply.seconds)
        for reply in finished.trained
    ]
    evaluated = [
        part.measured(step=finished.number, site=reply.site, split=split, seconds=reply.seconds)
        for reply in finished.evaluated
        for split, part in reply.splits.items()
    ]
    values = {name: metric.value if _usable(metric) else None for name, metric in pooled.items()}
    return [*trained, *evaluated, _together(trained, {}), _together(evaluated, values)]


def _together(lines: Sequence[Measurement], metrics: Mapping[str, float | None]) -> Measurement:
    """One split of one round over the patients of all sites: losses are means by sample, metrics are given."""
    count = sum(line.num_samples for line in lines)

    def mean(values: Iterable[float]) -> float:
        return sum(value * line.num_samples for value, line in zip(values, lines, strict=True)) / count

    first = lines[0]
    return Measurement(
        step=first.step,
        site=POOLED,
        split=first.split,
        loss=mean(line.loss or 0.0 for line in lines),
        parts={name: mean(line.parts[name] for line in lines) for name in first.parts},
        metrics=metrics,
        num_samples=count,
        seconds=max(line.seconds for line in lines),
    )
