"""A radiograph drawn from a chest and its severities: density of tissue, air in the lungs, and what fills the air.

    density = tissue + bones + devices - air * lung * (1 - opacity),   1 - opacity = product over k of (1 - strength_k * z_k * shape_k)

Where the strength is 1 and a shape is full, a severity of 1 leaves no air. The heart grows with its severity, atelectasis raises
the diaphragm, effusion rises from the costophrenic angle. Pixels are gray values in 0 to 255, bright = dense.
"""  # noqa: E501 - an equation

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from simulation.synthesize.anatomy import SIGN, Anatomy, View, view_matrix
from simulation.synthesize.course import FINDINGS, LEFT, MIDDLE
from simulation.synthesize.settings import ScannerSettings

AIR = 0.46
"""Density that air takes away from a lung without disease."""
STRENGTH = {"atelectasis": 0.85, "consolidation": 0.9, "pulmonary edema": 0.85, "pneumonia": 0.85}
"""Share of the air that a severity of 1 displaces at the core of its shape; effusion displaces all of it."""
VOLUME_LOSS = 0.10
"""How far full atelectasis raises the diaphragm."""
EFFUSION_RISE = 0.55
"""How far above the costophrenic angle a full effusion stands."""
HEART_GROWTH = 0.55
"""Relative growth of the heart's half width at severity 1."""

Field = Float[np.ndarray, "height width"]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What all radiographs of a patient share, drawn once: coordinates, fixed patterns, bones and soft tissue."""

    x: Field
    y: Field
    tissue: Field
    chest: dict[str, Field]
    """By side: the inside of the rib cage, in 0 to 1, without regard to the diaphragm."""
    markings: Field
    shapes: dict[tuple[str, str], Field]
    """By disease and side: where it would lie, in 0 to 1."""


def prepare_canvas(anatomy: Anatomy, width: int, height: int) -> Canvas:
    """The static layers of a patient's radiographs."""
    grid_y, grid_x = np.meshgrid(_axis(height), _axis(width), indexing="ij")
    rng = np.random.default_rng(anatomy.texture_seed)
    chest = {side: _inside_ribs(anatomy, sign, grid_x, grid_y) for side, sign in SIGN.items()}
    shapes: dict[tuple[str, str], Field] = {}
    for side, sign in SIGN.items():
        shapes |= _disease_shapes(rng, anatomy, side, sign, grid_x, grid_y)
    return Canvas(
        x=grid_x,
        y=grid_y,
        tissue=_tissue(rng, anatomy, grid_x, grid_y),
        chest=chest,
        markings=_smooth_noise(rng, height, width, 48) * 0.6 + _smooth_noise(rng, height, width, 20) * 0.4,
        shapes=shapes,
    )


def draw_radiograph(
    rng: np.random.Generator,
    anatomy: Anatomy,
    canvas: Canvas,
    severities: Float[np.ndarray, " finding"],
    view: View,
    scanner: ScannerSettings,
) -> UInt8[np.ndarray, "height width"]:
    """One radiograph: density in the patient's coordinates, then position, exposure and the scanner's look."""
    by_finding = dict(zip(FINDINGS, severities.tolist(), strict=True))
    density = _density(anatomy, canvas, by_finding)
    positioned = _position(_draw_devices(density, anatomy), view)
    return _scan(rng, positioned + view.exposure, scanner)


def _axis(pixels: int) -> np.ndarray:
    return ((np.arange(pixels, dtype=np.float32) + 0.5) / pixels * 2.0 - 1.0).astype(np.float32)


def _step(values: Field, softness: float) -> Field:
    """0 where values are far below zero, 1 far above, smooth between over about four times `softness`."""
    return 0.5 + 0.5 * np.tanh(values / np.float32(2.0 * softness))


def _blob(x: Field, y: Field, center: tuple[float, float], spread: tuple[float, float]) -> Field:
    return np.exp(-0.5 * (((x - center[0]) / spread[0]) ** 2 + ((y - center[1]) / spread[1]) ** 2))


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Field:
    """Random pattern with about `cells` cells across the image, mean 0 and sd 1 over the coarse grid."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _inside_ribs(a: Anatomy, sign: float, x: Field, y: Field) -> Field:
    """A lung's outline above the diaphragm: a rounded shape, narrower at the apex."""
    across = (sign * x - a.lung_center) / a.lung_width
    height = 0.66 * (a.diaphragm + a.dome - a.apex)
    along = (y - (a.apex + height)) / height
    upper = np.minimum(along, 0.0)
    radius = np.abs(across) ** 2.6 + np.abs(upper) ** 2.4
    return _step(1.0 - radius, 0.035)


def _tissue(rng: np.random.Generator, a: Anatomy, x: Field, y: Field) -> Field:
    """Body outline, soft tissue, spine, mediastinum, clavicles, ribs, abdomen."""
    shoulder = 0.22 + 0.74 * np.clip((y + 1.02) / 0.34, 0.0, 1.0) ** 0.7
    body = _step(shoulder - np.abs(x), 0.012)
    arch = y - 0.22 * (np.abs(x) - 0.25)
    ribs = np.cos(2.0 * np.pi * (5.2 * arch - 2.6 * (np.abs(x) - 0.5) ** 2 + a.rib_phase))
    ribs = np.clip(ribs, 0.0, 1.0) ** 2 * _step(0.88 - np.abs(x), 0.02) * _step(np.abs(x) - 0.06, 0.03)
    ribs = ribs * _step(a.diaphragm + 0.1 - y, 0.05)
    spine = _step(0.085 - np.abs(x), 0.012) * (0.05 + 0.025 * np.cos(2.0 * np.pi * 6.5 * y))
    mediastinum = 0.09 * _step(0.15 - np.abs(x - 0.02), 0.025) * _step(y + 0.9, 0.1)
    trachea = -0.12 * _step(0.034 - np.abs(x), 0.008) * _step(-0.22 - y, 0.04)
    clavicles = 0.10 * np.exp(-((y + 0.70 - 0.16 * (np.abs(x) - 0.35)) ** 2) / 0.0009) * _step(np.abs(x) - 0.08, 0.02)
    abdomen = 0.12 * _step(y - a.diaphragm - 0.05, 0.04)
    stomach = -0.10 * _blob(x, y, (0.42, a.diaphragm + 0.26), (0.10, 0.06))
    mottle = 0.008 * _smooth_noise(rng, x.shape[0], x.shape[1], 24)
    inside = 0.62 + a.thickness + a.rib_contrast * ribs + spine + mediastinum + trachea + clavicles
    return body * (inside + abdomen + stomach + mottle)


def _disease_shapes(
    rng: np.random.Generator, a: Anatomy, side: str, sign: float, x: Field, y: Field
) -> dict[tuple[str, str], Field]:
    """Where each parenchymal disease of one lung would lie; patchy ones lie in places of the patient's own."""
    base = a.diaphragm - 0.10
    patches = _step(_smooth_noise(rng, x.shape[0], x.shape[1], 13) + 0.5, 0.35)
    streaks = 0.6 + 0.4 * np.cos(2.0 * np.pi * (9.0 * y + sign * 2.0 * x + rng.uniform()))
    place = (sign * (a.lung_center + rng.normal(0.0, 0.04)), base - 0.06 + rng.normal(0.0, 0.03))
    return {
        ("atelectasis", side): _step(y - (a.diaphragm - 0.22), 0.05) * streaks,
        ("consolidation", side): _blob(x, y, place, (0.22, 0.19)),
        ("pulmonary edema", side): np.maximum(
            _blob(x, y, (sign * 0.24, -0.05), (0.20, 0.24)), 0.25 * _blob(x, y, (sign * 0.4, 0.0), (0.3, 0.45))
        ),
        ("pneumonia", side): patches * _blob(x, y, (sign * (a.lung_center + 0.05), -0.26), (0.30, 0.30)),
    }


def _density(a: Anatomy, canvas: Canvas, severity: dict[tuple[str, str], float]) -> Field:
    x, y = canvas.x, canvas.y
    density = canvas.tissue.copy()
    heart = _heart(a, canvas, severity["enlarged cardiac silhouette", MIDDLE])
    for side, sign in SIGN.items():
        across = (sign * x - a.lung_center) / a.lung_width
        raised = VOLUME_LOSS * severity["atelectasis", side] + (0.03 if side != LEFT else 0.0)
        floor = a.diaphragm - raised + (a.dome + raised) * across**2
        lung = canvas.chest[side] * _step(floor - y, 0.018) * (1.0 - heart)
        clear = _clear_air(a, canvas, side, sign, severity)
        density -= AIR * lung * clear * (1.0 - 0.13 * canvas.markings * _blob(x, y, (sign * 0.2, 0.0), (0.3, 0.4)))
    return density + 0.07 * heart


def _clear_air(a: Anatomy, canvas: Canvas, side: str, sign: float, severity: dict[tuple[str, str], float]) -> Field:
    """1 - opacity of one side: the share of air that disease leaves."""
    clear = np.ones_like(canvas.x)
    for disease, strength in STRENGTH.items():
        clear *= 1.0 - np.float32(strength * severity[disease, side]) * canvas.shapes[disease, side]
    depth = a.diaphragm + a.dome - EFFUSION_RISE * severity["pleural effusion", side]
    meniscus = 0.10 * (np.abs(sign * canvas.x - a.lung_center) / a.lung_width) ** 3
    return clear * _step(depth - meniscus + 0.06 - canvas.y, 0.03)


def _heart(a: Anatomy, canvas: Canvas, severity: float) -> Field:
    """The cardiac silhouette, in 0 to 1: an ellipse leaning to the patient's left, and the great vessels above."""
    half = a.heart_width * (1.0 + HEART_GROWTH * severity)
    center_x, center_y = a.heart_x + 0.25 * (half - a.heart_width), a.diaphragm - 0.16
    across, along = canvas.x - center_x, canvas.y - center_y
    lean = across - 0.35 * along
    radius = (lean / half) ** 2 + (along / (0.26 + 0.3 * (half - 0.27))) ** 2
    return np.maximum(_step(1.0 - radius, 0.09), 0.7 * _step(0.13 - np.abs(canvas.x - 0.03), 0.02))


def _draw_devices(density: Field, a: Anatomy) -> Field:
    """Tube, line and pacemaker as bright strokes; static, they say nothing about the course."""
    height, width = density.shape
    picture = Image.new("L", (width, height))
    pen = ImageDraw.Draw(picture)

    def at(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [((x + 1.0) / 2.0 * width, (y + 1.0) / 2.0 * height) for x, y in points]

    stroke = max(1, width // 160)
    if a.tracheal_tube:
        pen.line(at([(0.0, -1.0), (0.005, -0.6), (0.0, -0.32)]), fill=200, width=stroke + 1)
    if a.venous_line:
        pen.line(at([(-0.18, -1.0), (-0.14, -0.7), (-0.09, -0.45), (-0.08, -0.05)]), fill=170, width=stroke)
    if a.pacemaker:
        pen.ellipse(at([(0.52, -0.72), (0.70, -0.54)]), fill=230)
        pen.line(at([(0.55, -0.56), (0.2, -0.5), (0.0, -0.1), (0.15, 0.3)]), fill=190, width=stroke)
    return density + 0.35 * np.asarray(picture, dtype=np.float32) / 255.0


def _position(density: Field, view: View) -> Field:
    """The density as the view sees it: shifted, scaled, turned; bilinear."""
    height, width = density.shape
    to_unit = np.array([[2.0 / width, 0.0, -1.0], [0.0, 2.0 / height, -1.0], [0.0, 0.0, 1.0]])
    forward = np.vstack([view_matrix(view), [0.0, 0.0, 1.0]])
    backward = np.linalg.inv(to_unit) @ np.linalg.inv(forward) @ to_unit
    image = Image.fromarray(np.ascontiguousarray(density, dtype=np.float32))
    moved = image.transform(
        (width, height), Image.Transform.AFFINE, backward[:2].ravel().tolist(), Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def _scan(rng: np.random.Generator, density: Field, scanner: ScannerSettings) -> UInt8[np.ndarray, "height width"]:
    """Tone curve, detector blur, noise and collimation of a hospital's machine."""
    tone = np.clip(0.5 + scanner.contrast * (density - 0.5), 0.0, 1.0) ** scanner.gamma + scanner.brightness
    height, width = tone.shape
    if scanner.blur > 1.0:
        coarse = Image.fromarray(tone.astype(np.float32)).resize(
            (round(width / scanner.blur), round(height / scanner.blur)), Image.Resampling.BILINEAR
        )
        tone = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
    tone = tone + scanner.noise * rng.standard_normal(tone.shape, dtype=np.float32)
    for axis, pixels in enumerate((height, width)):
        first, last = (int(pixels * scanner.collimation * rng.uniform()) for _ in range(2))
        shutter = np.ones(pixels, dtype=np.float32)
        shutter[:first], shutter[pixels - last :] = 0.0, 0.0
        tone = tone * (shutter[:, None] if axis == 0 else shutter[None, :])
    return (np.clip(tone, 0.0, 1.0) * 255.0).round().astype(np.uint8)
