"""The static part of a radiograph: one patient's chest in its own coordinates, and where the ten regions lie in it.

Coordinates: x from -1 (image left, the patient's right) to 1, y from -1 (top) to 1 (bottom). `sign` is +1 for the
patient's left, which is drawn on the right side of the image.
"""

from dataclasses import dataclass

import numpy as np

from dipro_model.vocabulary import REGIONS
from simulation.synthesize.course import LEFT, RIGHT

SIGN = {LEFT: 1.0, RIGHT: -1.0}

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Shape and habits of one chest; lengths in the coordinates above, densities in 0 to 1."""

    lung_width: float
    """Half width of a lung."""
    lung_center: float
    """Distance of a lung's middle from the spine."""
    apex: float
    """y of the top of the lungs."""
    diaphragm: float
    """y of the top of the domes at usual inspiration."""
    dome: float
    """How much lower the costophrenic angles lie than the domes."""
    heart_width: float
    """Half width of the heart without disease."""
    heart_x: float
    thickness: float
    """Added density of the soft tissue."""
    rib_phase: float
    rib_contrast: float
    tracheal_tube: bool
    venous_line: bool
    pacemaker: bool
    texture_seed: int
    """Seed of the fixed patterns: lung markings, and where patches of disease would lie."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How one radiograph was taken: the patient's position and the exposure."""

    shift_x: float
    shift_y: float
    scale: float
    rotation: float
    """Radians."""
    exposure: float
    """Added density."""


def draw_anatomy(rng: np.random.Generator, *, ventilated: bool) -> Anatomy:
    """A chest; a ventilated patient has a tracheal tube."""
    return Anatomy(
        lung_width=float(rng.normal(0.35, 0.015)),
        lung_center=float(rng.normal(0.44, 0.015)),
        apex=float(rng.normal(-0.74, 0.03)),
        diaphragm=float(rng.normal(0.42, 0.04)),
        dome=float(rng.normal(0.17, 0.02)),
        heart_width=float(np.clip(rng.normal(0.27, 0.03), 0.19, 0.36)),
        heart_x=float(rng.normal(0.10, 0.02)),
        thickness=float(np.clip(rng.normal(0.0, 0.03), -0.07, 0.07)),
        rib_phase=float(rng.uniform(0.0, 1.0)),
        rib_contrast=float(rng.uniform(0.03, 0.06)),
        tracheal_tube=ventilated,
        venous_line=bool(rng.random() < 0.6),
        pacemaker=bool(rng.random() < 0.1),
        texture_seed=int(rng.integers(2**31)),
    )


def draw_view(rng: np.random.Generator) -> View:
    """The small differences between two radiographs of one patient that mean nothing."""
    return View(
        shift_x=float(rng.normal(0.0, 0.025)),
        shift_y=float(rng.normal(0.0, 0.025)),
        scale=float(rng.normal(1.0, 0.02)),
        rotation=float(rng.normal(0.0, 0.02)),
        exposure=float(rng.normal(0.0, 0.010)),
    )


def region_boxes(anatomy: Anatomy) -> dict[str, Box]:
    """The box of each region in the patient's coordinates. They follow the anatomy, not the disease."""
    a = anatomy
    floor = a.diaphragm + a.dome
    boxes: dict[str, Box] = {}
    for side, sign in SIGN.items():
        inner, outer = a.lung_center - 0.95 * a.lung_width, a.lung_center + a.lung_width
        boxes[f"{side} lung"] = _mirror(sign, inner, a.apex, outer, floor)
        boxes[f"{side} lower lung zone"] = _mirror(sign, inner, a.diaphragm - 0.34, outer, floor)
        boxes[f"{side} hilar structures"] = _mirror(sign, 0.06, -0.26, 0.40, 0.14)
        boxes[f"{side} costophrenic angle"] = _mirror(sign, outer - 0.24, floor - 0.24, outer + 0.02, floor + 0.04)
    reach = 1.25 * a.heart_width
    boxes["cardiac silhouette"] = (a.heart_x - reach, -0.08, a.heart_x + reach, a.diaphragm + 0.12)
    boxes["mediastinum"] = (-0.20, -0.85, 0.22, 0.10)
    return {region: boxes[region] for region in REGIONS}


def _mirror(sign: float, inner: float, top: float, outer: float, bottom: float) -> Box:
    first, second = sorted((sign * inner, sign * outer))
    return first, top, second, bottom


def view_matrix(view: View) -> np.ndarray:
    """2 x 3 matrix from the patient's coordinates to those of the image."""
    cosine, sine = view.scale * np.cos(view.rotation), view.scale * np.sin(view.rotation)
    return np.array([[cosine, -sine, view.shift_x], [sine, cosine, view.shift_y]])


def pixel_boxes(anatomy: Anatomy, view: View, width: int, height: int) -> dict[str, tuple[int, int, int, int]]:
    """The box of each region in pixels of the image, x1, y1, x2, y2, inside the image."""
    matrix = view_matrix(view)
    found = {}
    for region, (x1, y1, x2, y2) in region_boxes(anatomy).items():
        corners = matrix @ np.array([[x1, x2, x1, x2], [y1, y1, y2, y2], [1.0, 1.0, 1.0, 1.0]])
        xs = np.clip((corners[0] + 1.0) / 2.0 * width, 0, width - 1).round().astype(int)
        ys = np.clip((corners[1] + 1.0) / 2.0 * height, 0, height - 1).round().astype(int)
        found[region] = (int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max()))
    return found
