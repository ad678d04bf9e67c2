"""What the page says of a study in words: first lines, captions, and how each conclusion was drawn."""

from simulation.comparison.differences import (
    GAIN,
    INFERIOR,
    LOSS,
    MIN_CLASS_PATIENTS,
    NON_INFERIOR,
    NOT_SHOWN,
    Difference,
)
from simulation.comparison.draws import Estimate
from simulation.comparison.study import Study
from simulation.tables import METRIC_NAMES, three_digits

VERDICT_CLASSES = {NON_INFERIOR: "good", INFERIOR: "bad", NOT_SHOWN: "open", GAIN: "good", LOSS: "bad"}
"""How the page marks a verdict."""


def signed(value: float) -> str:
    """Three decimals with a sign; what rounds to zero has none."""
    text = three_digits(value)
    return text.removeprefix("−") if float(f"{value:.3f}") == 0 else (text if value < 0 else f"+{text}")


def signed_interval(estimate: Estimate) -> str | None:
    """Lower and upper end; None where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return None
    return f"{signed(estimate.low)} to {signed(estimate.high)}"


_PRIVACY_METHOD = (
    "What was hidden",
    "ε is what the accountant finds for the steps and rounds that were really made, those that were made again too, "
    "from above. Rounds, hidden updates and opened masks are counted in the server's audit log.",
)


def verdicts(study: Study) -> list[tuple[str, str]]:
    """The pooled verdicts on every arm that sites would train together: (arm, sentence)."""
    found = []
    for arm in (arm.label for arm in study.arms if arm.kind in ("federated", "personal")):
        own = [
            each
            for each in study.differences
            if each.arm == arm and each.site == study.comparison.columns[0].site and each.margin is not None
        ]
        if own:
            found.append((arm, f"minus “{own[0].reference}”: {'; '.join(_verdict_in_words(each) for each in own)}"))
    return found


def _verdict_in_words(difference: Difference) -> str:
    name = METRIC_NAMES[difference.metric]
    if difference.estimate.value is None:
        return f"{name} undefined"
    interval = signed_interval(difference.estimate)
    number = f"{name} {signed(difference.estimate.value)}" + (f" ({interval})" if interval else "")
    margin = f"margin {difference.margin:g}"
    words = {
        NON_INFERIOR: f"non-inferior within the {margin}",
        INFERIOR: f"inferior by more than the {margin}",
        NOT_SHOWN: f"neither non-inferior nor inferior is shown for the {margin}",
    }
    return f"{number}, {words[difference.verdict] if difference.verdict else 'no verdict'}"


def differences_caption(study: Study) -> str:
    margins = ", ".join(f"{METRIC_NAMES[name]} {margin:g}" for name, margin in study.margins.items())
    return (
        f"Each model minus “{study.reference}”, on the same patients. Solid line: no difference; dashed: the margin "
        f"({margins}); a triangle lies outside. Non-inferior: the whole interval is on the better side of the margin. "
        "Inferior: all of it is on the worse side. Not shown: these patients do not settle it, which is not the same "
        "as being equal."
    )


def seeds_caption(study: Study) -> str:
    """What a mean over seeds means; empty where every model has one."""
    several = [arm.label for arm in study.arms if len(arm.models) > 1]
    if not several:
        return ""
    return (
        "Runs that differ by their seed alone are one model here: value and difference are means over the seeds, ± is "
        "the standard deviation over them. Differences are taken seed by seed where both models have the seed."
    )


CROSS_SITE_CAPTION = (
    "Rows: who trained the model. Columns: whose patients it is scored on. The stronger the colour, the better, on one "
    "scale a metric; a frame marks a site's own model on its own patients. Sites differ in their patients, too: read "
    "down a column to compare models."
)
PATIENTS_CAPTION = (
    "Any one training patient, from whoever sees what left the site: with or without that patient nothing that left "
    "is likelier by more than a factor e^ε, but for a chance of δ. The smaller ε, the more is hidden. Validation and "
    "test patients are not covered."
)
WHOLE_SITES_CAPTION = (
    "All that any one site sent in training, from whoever sees the models of all rounds, in the same sense. Not from "
    "the server, which shortens and noises the updates and sees each before. Noise to mean update: how many times as "
    "long as the mean of all updates can be a round's noise is."
)
UPDATES_CAPTION = (
    "Each site's update, from the server, which saw one sum a round. Of a hidden update it saw neither weights nor "
    "length nor direction, so that none could be refused for these. It saw who took part, numbers of samples, losses "
    "and metrics. The masks of a site that was lost after it had given shares are opened by the others; no update "
    "shows by that."
)
GAINS_CAPTION = (
    "The model trained together minus the model that the site trained alone, on the site's own patients. Gain: the "
    "whole interval is better than 0. Loss: all of it is worse. Not shown: these patients do not settle it. Of many "
    "sites, some gain or lose by chance."
)


def fairness_caption(study: Study) -> str:
    return (
        f"Groups of fewer than {study.fairness.minimum} patients are withheld. Spread: the best group's value minus "
        "the worst one's; chance alone makes one, the more the smaller the groups are. Groups also differ in how ill "
        "they are, which moves the AUPRC and the Brier score whatever the model. Models of one site alone are in the "
        "files."
    )


def method(study: Study) -> list[tuple[str, str]]:
    """Term and explanation, in the order of reading."""
    comparison = study.comparison
    side = f"{50 * (1 + comparison.level):g} %"
    return [
        (
            "Differences and verdicts",
            f"Both models are scored on each of the {comparison.num_resamples} resamples of patients and subtracted "
            "there, so that what the patients do to both cancels out. The verdict is one-sided at "
            f"{side}: the lower end of the two-sided interval against the margin. It needs {MIN_CLASS_PATIENTS} "
            "patients of every class. Verdicts are not corrected for their number.",
        ),
        (
            "Groups",
            "Patients are drawn from all sites together and every group takes its part of the draw. The interval of a "
            "spread is mirrored at its value, as that of the calibration error, and for the same reason.",
        ),
        (
            "Bytes",
            "What the server sent to all sites and received from them in all rounds, training and evaluation together, "
            "as counted at the server. Models that are trained in one place send nothing.",
        ),
        *([_PRIVACY_METHOD] if study.hidden else []),
    ]


def hid_nothing(study: Study) -> str:
    """Which of the runs across sites hid nothing; empty where all did, or none."""
    hiding = {each.model for each in study.hidden}
    federated = [run.label for run in study.comparison.runs if run.record.kind == "federated"]
    others = [label for label in federated if label not in hiding]
    if not others or not hiding:
        return ""
    return f"Nothing of it was hidden in {', '.join(f'“{label}”' for label in others)}."


def amount(num_bytes: float | None) -> str:
    """Bytes in a decimal unit."""
    if num_bytes is None:
        return "not recorded"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"
