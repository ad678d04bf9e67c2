"""Who has what, drawn: patients by split, shares of the labels, and what was charted and taken, a row a site."""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure

from client.pictures.style import CLASS_COLORS, COLORS, add_caption, add_title, plain, save
from dipro_model.vocabulary import EHR_VARIABLES, SPLITS, Task
from simulation.partition.manifest import Partition, PartitionSite

_SPLIT_COLORS = dict(zip(SPLITS, (COLORS[0], COLORS[5], COLORS[4]), strict=True))
_SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}
_MOST_NAMED = 30
"""With more sites than this, rows are narrow, only some sites are named and no number is written."""
_MAX_INCHES = 30.0
_LETTERS_A_LINE = 27


def draw_partition_picture(partition: Partition, out: Path) -> Path:
    """Draw the manifest as one PNG."""
    sites = partition.sites
    few = len(sites) <= _MOST_NAMED
    height = min(max((0.34 if few else 0.13) * len(sites), 1.7), _MAX_INCHES)
    figure = Figure(figsize=(16.5, 2.9 + height), layout="constrained")
    widths = [4.2, 4.2, 7.2, 1.5] if few else [4.2, 4.2, 7.2]
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    axes = [figure.add_subplot(grid[0, column]) for column in range(len(widths))]
    _draw_patients(axes[0], sites)
    _draw_labels(axes[1], partition)
    _draw_charted(axes[2], sites)
    if few:
        _draw_images(axes[3], sites)
    names = [textwrap.fill(site.name, _LETTERS_A_LINE) for site in sites]
    step = -(-len(sites) // _MOST_NAMED)
    for place, each in enumerate(axes):
        each.set_ylim(len(sites) - 0.5, -0.5)
        each.set_yticks(*((range(0, len(sites), step), names[::step]) if place == 0 else ([], [])))
    add_title(figure, f"{_words(partition)}: who has what")
    add_caption(figure, _caption(partition))
    return save(figure, out)


def _draw_patients(axes: Axes, sites: tuple[PartitionSite, ...]) -> None:
    left = np.zeros(len(sites))
    for split in SPLITS:
        counts = np.array([site.counts[split].patients for site in sites], float)
        axes.barh(range(len(sites)), counts, left=left, color=_SPLIT_COLORS[split], label=_SPLIT_WORDS[split])
        left += counts
    if len(sites) <= _MOST_NAMED:
        for place, site in enumerate(sites):
            numbers = " + ".join(str(site.counts[split].patients) for split in SPLITS)
            axes.text(left[place] + 0.01 * left.max(), place, numbers, va="center", fontsize=7)
    axes.set_xlim(0, 1.28 * max(left.max(), 1))
    _finish(axes, "patients", "patients with radiographs, by split", columns=3)


def _draw_labels(axes: Axes, partition: Partition) -> None:
    colors = CLASS_COLORS[partition.task]
    counts = np.array([[site.counts["train"].labels[word] for word in colors] for site in partition.sites], float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left = np.zeros(len(shares))
    for place, (word, color) in enumerate(colors.items()):
        axes.barh(range(len(shares)), shares[:, place], left=left, color=color, label=word)
        if len(shares) <= _MOST_NAMED:
            for row, share in enumerate(shares[:, place]):
                if share >= 0.09:
                    number = f"{counts[row, place]:.0f}"
                    axes.text(
                        left[row] + share / 2, row, number, ha="center", va="center", fontsize=7, color=_ink(color)
                    )
        left += shares[:, place]
    axes.set_xlim(0, 1)
    _finish(axes, "share of the labels", f"{partition.task}: training labels", columns=len(colors))


def _draw_charted(axes: Axes, sites: tuple[PartitionSite, ...]) -> None:
    shares = np.array([[site.charted[name] for name in EHR_VARIABLES] for site in sites])
    axes.imshow(shares, aspect="auto", cmap=_cividis(), vmin=0, vmax=1, interpolation="nearest")
    for row, site in enumerate(sites):
        for place, name in enumerate(EHR_VARIABLES):
            if name in site.gaps.variables and len(sites) <= _MOST_NAMED:
                axes.text(place, row, "×", ha="center", va="center", fontsize=8, color="white")
    axes.set_xticks(range(len(EHR_VARIABLES)), EHR_VARIABLES, rotation=90, fontsize=6)
    axes.set_title("share of the stays in which a variable was charted", fontsize=9, loc="left")
    axes.tick_params(left=False, length=0)
    axes.spines[:].set_visible(False)
    colors = axes.figure.colorbar(axes.images[0], ax=axes, location="right", pad=0.01, fraction=0.03)
    colors.ax.tick_params(labelsize=7)


def _draw_images(axes: Axes, sites: tuple[PartitionSite, ...]) -> None:
    """Radiographs of a stay and the share of pairs that are compared region by region, as numbers."""
    columns = {"images\na stay": _images_a_stay, "pairs with\nregions": _region_share}
    axes.set_xlim(-0.5, len(columns) - 0.5)
    for place, value in enumerate(columns.values()):
        for row, site in enumerate(sites):
            text, lacks = value(site)
            color, weight = (COLORS[1], "bold") if lacks else ("black", "normal")
            axes.text(place, row, text, ha="center", va="center", fontsize=8, color=color, fontweight=weight)
    axes.set_xticks(range(len(columns)), list(columns), fontsize=7)
    axes.tick_params(left=False, length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("radiographs", fontsize=9, loc="left")


def _images_a_stay(site: PartitionSite) -> tuple[str, bool]:
    images, stays = (sum(getattr(site.counts[split], name) for split in SPLITS) for name in ("images", "stays"))
    return f"{images / max(stays, 1):.1f}", site.gaps.max_images is not None


def _region_share(site: PartitionSite) -> tuple[str, bool]:
    with_region, pairs = (
        sum(getattr(site.counts[split], name) for split in SPLITS) for name in ("region_pairs", "pairs")
    )
    return f"{with_region / pairs:.0%}" if pairs else "no pair", site.gaps.no_region_labels


def _finish(axes: Axes, x: str, title: str, *, columns: int) -> None:
    plain(axes)
    axes.set_xlabel(x, fontsize=8)
    axes.set_title(title, fontsize=9, loc="left", pad=24)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        fontsize=7,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def _caption(partition: Partition) -> str:
    drawn = f", draw {partition.draw} of at most {partition.max_draws}" if partition.max_draws > 1 else ""
    cohorts = ", ".join(cohort.name for cohort in partition.cohorts)
    labels = "labels of all pairs and diseases" if partition.task is Task.DISEASE_PROGRESSION else "stays"
    marks = (
        f" Numbers in the bars count {labels}. × and bold numbers: what the site lacks; a dark column without × was "
        "charted in few stays of the cohort itself."
    )
    merged = "; ".join(f"{site.name}: {', '.join(site.groups)}" for site in partition.sites if len(site.groups) > 1)
    return (
        f"{cohorts}, {len(partition.sites)} sites, seed {partition.seed}{drawn}. Every patient is at one site and "
        f"keeps the cohort's split.{marks if len(partition.sites) <= _MOST_NAMED else ''}"
    ) + (f"\n{merged}." if merged else "")


def _words(partition: Partition) -> str:
    own = {name: value for name, value in partition.parameters.items() if name in ("alpha", "sigma", "exponent")}
    return " ".join([partition.scheme.replace("_", " "), *(f"({name} {value:g})" for name, value in own.items())])


def _cividis() -> Colormap:
    return matplotlib.colormaps["cividis"]


def _ink(color: str) -> str:
    """White on a dark colour, black on a light one."""
    red, green, blue = to_rgb(color)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "black"
