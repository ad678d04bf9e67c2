"""What the report says in words: titles, the first lines, captions, and how each number was made."""

from collections.abc import Sequence

from dipro_model.metrics import EQUAL_TO_ACCURACY, LOWER_IS_BETTER, METRICS
from dipro_model.vocabulary import Task
from federation.run_folder import POOLED
from simulation.compare import Cell, Column, Comparison, Model
from simulation.tables import METRIC_NAMES, in_words, interval_in_words, three_digits

TASK_TITLES = {
    Task.DISEASE_PROGRESSION: "Disease progression between radiographs",
    Task.MORTALITY: "Death in hospital",
    Task.LENGTH_OF_STAY: "Length of ICU stay",
}
KIND_WORDS = {
    "centralized": "trained with all patients in one place",
    "federated": "trained across the sites, patients stay where they are",
    "local": "trained at one site alone",
    "personal": "trained across the sites, then every site with a model of its own",
    "alone": "every site with the model it trained alone",
    "evaluated": "a finished model, scored as it is",
}
SPLIT_WORDS = {"test": "test", "val": "validation", "train": "training"}
CAUTION = (
    "The intervals say how far a value could move with other patients of the same kind. They say nothing about "
    "training again with another seed, and two intervals that overlap do not prove two models equal."
)

_OVER_CLASSES = "averaged over worsened, improved and no change, then over diseases"
_OVER_STAYS = "averaged over the four classes of stay"
_MEANINGS = {
    (
        Task.MORTALITY,
        "auroc",
    ): "chance that a patient who died got a higher risk than one who survived; 0.5 is guessing",
    (Task.MORTALITY, "auprc"): "average precision; guessing reaches the share of patients who died",
    (Task.LENGTH_OF_STAY, "kappa"): "agreement with the true class beyond chance, unweighted; 0 is guessing",
    (Task.LENGTH_OF_STAY, "accuracy"): "share of stays put into the right one of four classes",
    (Task.DISEASE_PROGRESSION, "f1"): _OVER_CLASSES,
    (Task.DISEASE_PROGRESSION, "precision"): _OVER_CLASSES,
    (Task.DISEASE_PROGRESSION, "recall"): _OVER_CLASSES,
    (Task.DISEASE_PROGRESSION, "auroc"): f"one class against the others, {_OVER_CLASSES}; 0.5 is guessing",
    (Task.DISEASE_PROGRESSION, "auprc"): (
        f"one class against the others, {_OVER_CLASSES}; trapezoid under the precision-recall curve, as published"
    ),
    (Task.LENGTH_OF_STAY, "f1"): f"harmonic mean of precision and recall, {_OVER_STAYS}",
    (Task.LENGTH_OF_STAY, "precision"): f"of the stays put into a class, the share that belongs there, {_OVER_STAYS}",
    (Task.LENGTH_OF_STAY, "recall"): f"of the stays of a class, the share that was found, {_OVER_STAYS}",
    (Task.LENGTH_OF_STAY, "auroc"): f"one class against the others, {_OVER_STAYS}; 0.5 is guessing",
    (Task.LENGTH_OF_STAY, "auprc"): (
        f"one class against the others, {_OVER_STAYS}; trapezoid under the precision-recall curve, as published"
    ),
    (Task.MORTALITY, "brier"): "mean squared gap between the risk and what happened (died 1, survived 0)",
    (Task.LENGTH_OF_STAY, "brier"): "squared gaps between the probabilities and what happened, summed over the classes",
    (Task.DISEASE_PROGRESSION, "brier"): (
        "squared gaps between the probabilities and what happened, summed over the classes, averaged over diseases"
    ),
    (Task.MORTALITY, "ece"): "how far the risk and the share who died lie apart, on average over ten ranges of risk",
    (Task.LENGTH_OF_STAY, "ece"): (
        "how far the certainty of the chosen class and the share that was right lie apart, on average over ten ranges "
        "of certainty"
    ),
    (Task.DISEASE_PROGRESSION, "ece"): (
        "how far the certainty of the chosen class and the share that was right lie apart, on average over ten ranges "
        "of certainty, then over diseases"
    ),
}
"""What a metric measures, for people who do not know it."""


def meaning(comparison: Comparison, metric: str) -> str:
    """What a metric measures, which way is better where that is not up, and what knowing nothing would score."""
    says = _MEANINGS[comparison.task, metric] + ("; lower is better" if metric in LOWER_IS_BETTER else "")
    counts = list(comparison.columns[0].class_counts.values())
    # Over diseases the classes are counted together: their shares would not be those of any one disease.
    if metric != "brier" or comparison.task is Task.DISEASE_PROGRESSION or not sum(counts):
        return says
    shares = [count / sum(counts) for count in counts]
    uninformed = 1 - sum(share**2 for share in shares)
    if comparison.task is Task.MORTALITY:
        return f"{says}; the same risk for everybody, {100 * shares[1]:.0f} %, scores {three_digits(uninformed / 2)}"
    return f"{says}; the shares of the classes for every stay score {three_digits(uninformed)}"


def title(comparison: Comparison) -> str:
    """The task and which ways of training are compared."""
    kinds = {"federated" if model.kind == "personal" else model.kind for model in comparison.models}
    named = [kind for kind in ("federated", "centralized", "local") if kind in kinds]
    return f"{TASK_TITLES[comparison.task]}: {f'{_listed(named)} training' if named else 'finished models'}"


def lead(comparison: Comparison) -> str:
    """Whom the models are scored on."""
    pooled, *sites = comparison.columns
    # Whom a model learned from that comes from elsewhere is not known here.
    is_known = not any(model.kind == "evaluated" for model in comparison.models)
    is_unseen = comparison.split == "test" and not comparison.num_leaked and is_known
    unseen = ", whom none of them was trained on" if is_unseen else ""
    who = f"{SPLIT_WORDS[comparison.split]} patients{unseen}: {in_words(comparison.task, pooled)}"
    where = f"{len(sites)} site{'' if len(sites) == 1 else 's'}"
    return f"Every model is scored on the same {who} of {where} ({', '.join(classes(comparison.task, pooled))})."


def findings(comparison: Comparison) -> list[tuple[str, str]]:
    """The first metric on the pooled samples, for every way of training that has one model: (model, sentence)."""
    metric = comparison.metrics[0]
    found = []
    for kind in ("centralized", "federated", "personal", "alone", "evaluated"):
        models = [model for model in comparison.models if model.kind == kind]
        if len(models) == 1:
            cell = comparison.cells[metric, models[0].label, POOLED]
            found.append((models[0].label, f"{METRIC_NAMES[metric]} {_value(cell, comparison.level)}"))
    return found


def classes(task: Task, column: Column) -> list[str]:
    """How many labels of each class; of a yes-or-no outcome the yes alone."""
    if task is Task.MORTALITY:
        deaths = column.class_counts["died"]
        return [f"{deaths} death{'' if deaths == 1 else 's'}"]
    stayed = "stayed " if task is Task.LENGTH_OF_STAY else ""
    return [f"{count} {stayed}{name}" for name, count in column.class_counts.items()]


def about(model: Model, num_sites: int) -> str:
    """How a model was trained, as far as it is known."""
    if not model.trained_on:
        return KIND_WORDS[model.kind]
    if model.kind != "local" and len(model.trained_on) == num_sites:
        return KIND_WORDS[model.kind]
    return f"{KIND_WORDS[model.kind]}: {', '.join(model.trained_on)}"


def percent(level: float) -> str:
    return f"{100 * level:g} %"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def undefined_resamples(comparison: Comparison) -> list[str]:
    """A sentence on the resamples that some intervals had to leave out; none where none had."""
    metrics = set(comparison.metrics) - set(EQUAL_TO_ACCURACY)
    shown = [cell for (metric, _, _), cell in comparison.cells.items() if metric in metrics]
    counts = [cell.interval.num_undefined for cell in shown if cell.interval.low is not None]
    if not any(counts):
        return []
    return [
        f"In {sum(count > 0 for count in counts)} of {len(shown)} cells some resamples left the metric undefined, at "
        f"most {max(counts)} of {comparison.num_resamples}; their intervals are those of the other resamples (counts "
        "in table.csv)."
    ]


def curves_caption(comparison: Comparison) -> str:
    several = len({run.record.step_unit for run in comparison.runs}) > 1
    mixed = " Steps of different runs are not equally long: a round may hold several epochs." if several else ""
    return (
        "Thick: all of a run's patients. Dotted: one site. Diamond: the step whose model is scored above. "
        f"Click a name to hide or show its line.{mixed}"
    )


def equal_to_accuracy(task: Task) -> str:
    """Why some metrics of a task are not shown; empty where all are."""
    left_out = [METRIC_NAMES[name] for name in METRICS[task] if name in EQUAL_TO_ACCURACY]
    if not left_out:
        return ""
    return f"{_listed(left_out)} equal the accuracy, as every stay is in one class; the tables in the files hold them."


def reliability_caption(task: Task) -> str:
    """How to look at the reliability curves."""
    death = task is Task.MORTALITY
    cases = "stays of about the same predicted risk" if death else "cases of about the same certainty"
    above, below = (
        ("more died than predicted", "fewer")
        if death
        else ("the model was right more often than it said", "less often")
    )
    return (
        f"Each point: {cases}, the larger the more of them. On the dashed line predictions come true as often as they "
        f"say; above it {above}, below it {below}. Points of few patients jump by chance."
    )


def method(comparison: Comparison) -> list[tuple[str, str]]:
    """Term and explanation, in the order of reading."""
    return [
        (
            "Patients",
            f"The {SPLIT_WORDS[comparison.split]} split of every site. “All sites together” is the union of the sites' "
            "patients, scored as one set: not a mean of the sites' values.",
        ),
        (
            "Intervals",
            f"{percent(comparison.level)} percentile bootstrap intervals from {comparison.num_resamples} resamples "
            f"(seed {comparison.seed}). Patients are drawn, each with all samples, since samples of one patient "
            "resemble each other. In a column every model is resampled with the same draws. With few patients they "
            "are too short, and a value of exactly 1 has an interval without width: read those with care.",
        ),
        (
            "Calibration",
            "Most scores ask who got the higher probability or which class was chosen; calibration asks whether the "
            "numbers are true: of the predictions made with 20 %, one in five should come true. The Brier score judges "
            "both at once. The calibration error compares means within ten equal ranges of predicted probability. It "
            "cannot fall below 0, so chance pushes it up: with few patients even a perfect model does not reach 0. Its "
            "interval is mirrored at the value to make up for that (the basic bootstrap) and cut at 0.",
        ),
        (
            "Undefined",
            "A value that the patients leave undefined, for example because none of them died, is shown as undefined "
            "with its reason, never as 0.",
        ),
        (
            "Each site alone, on its own patients",
            "What the sites would have without working together: every site's patients are scored by the model that "
            "the site trained alone, and the scores of all sites are evaluated as one set.",
        ),
        (
            "Files",
            "Every number at full precision: table.csv and table.json hold the scores, models.csv, differences.csv, "
            "cross_site.csv, gains.csv, fairness.csv, costs.csv and comparison.json what follows from them, "
            "privacy.csv what each run hid, curves.csv the course of training.",
        ),
    ]


def _value(cell: Cell, level: float) -> str:
    if cell.result.value is None:
        return f"undefined ({cell.result.reason})"
    interval = interval_in_words(cell.interval)
    return three_digits(cell.result.value) + (f" ({percent(level)} interval {interval})" if interval else "")


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
