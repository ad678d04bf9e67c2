"""The coordinator's Flower app: runs the rounds and keeps the run's folder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dipro_model.vocabulary import SPLITS
from federation.initial import initial_model
from federation.messages import EvaluateReply
from federation.pooled import PooledMetric, combine, pooled_metrics
from federation.run_folder import POOLED, Measurement
from federation.run_writer import RunWriter, new_record
from federation.settings import RunSettings, SettingsError, from_run_config
from server.rounds import Round, evaluate, join_sites, run_rounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings, files = from_run_config(context.run_config)
    if not files.folder:
        raise SettingsError("the run config lacks files.folder; name a folder for the run: -c 'files.folder=\"RUN\"'")
    coordinate(grid, settings, Path(files.folder))


def coordinate(grid: Grid, settings: RunSettings, folder: Path, after_round: Callable[[], None] = lambda: None) -> None:
    """Run the federation and leave a run folder; a failure after the sites joined is recorded there, and raised."""
    federation = join_sites(grid, settings)
    names = list(federation.joined)
    record = new_record(settings, kind="federated", name="federated", step_unit="round", sites=names, trained_on=names)
    writer = RunWriter(folder, record)

    refused: list[dict[str, object]] = []

    def keep(finished: Round) -> None:
        refused.extend(
            {"round": finished.number, "site": site, "reason": reason.removeprefix(": ").strip()}
            for site, reason in finished.refused.items()
        )
        pooled = pooled_validation(finished.evaluated)
        monitor = pooled[writer.record.monitor]
        writer.note(refused=refused, monitor_reason=monitor.reason)
        writer.keep(finished.number, model, _measurements(finished, pooled), monitor.value)
        after_round()

    try:
        model = initial_model(settings)
        run_rounds(federation, model, folder, keep)
        chosen, step = writer.chosen_model()
        replies = evaluate(federation, chosen, step, splits=SPLITS, final=True)
        writer.finish({reply.site: {split: part.metrics for split, part in reply.splits.items()} for reply in replies})
    except BaseException as error:
        writer.fail(error)
        raise


def pooled_validation(replies: Sequence[EvaluateReply]) -> dict[str, PooledMetric]:
    """Metrics of the validation patients of these sites as one set, each with the bounds that its counts allow."""
    return pooled_metrics(combine([reply.counts["val"] for reply in replies]))


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
    values = {name: metric.value for name, metric in pooled.items()}
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
