"""The coordinator's Flower app: runs the rounds and keeps the run's folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dipro_model.vocabulary import SPLITS
from federation.initial import initial_model
from federation.messages import EvaluateReply
from federation.run_folder import Measurement
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
        writer.note(refused=refused)
        monitor = mean_monitor(writer.record.monitor, finished.evaluated)
        writer.keep(finished.number, model, _measurements(finished), monitor)
        after_round()

    try:
        model = initial_model(settings)
        run_rounds(federation, model, keep)
        chosen, step = writer.chosen_model()
        replies = evaluate(federation, chosen, step, splits=SPLITS, final=True)
        writer.finish({reply.site: {split: part.metrics for split, part in reply.splits.items()} for reply in replies})
    except BaseException as error:
        writer.fail(error)
        raise


def mean_monitor(monitor: str, replies: Sequence[EvaluateReply]) -> float | None:
    """Mean of the sites' validation monitors, weighted by their validation samples; None where none is defined.

    A mean of AUPRCs is not the AUPRC of the pooled patients; it only chooses the round whose model is kept as best.
    """
    results = [reply.splits["val"] for reply in replies]
    defined = [(value, part.num_samples) for part in results if (value := part.metrics[monitor]) is not None]
    total = sum(count for _, count in defined)
    return sum(value * count for value, count in defined) / total if total else None


def _measurements(finished: Round) -> list[Measurement]:
    trained = [
        reply.result().measured(step=finished.number, site=reply.site, split=SPLITS[0], seconds=reply.seconds)
        for reply in finished.trained
    ]
    evaluated = [
        part.measured(step=finished.number, site=reply.site, split=split, seconds=reply.seconds)
        for reply in finished.evaluated
        for split, part in reply.splits.items()
    ]
    return trained + evaluated
