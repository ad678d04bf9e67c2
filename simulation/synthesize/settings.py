"""What a synthetic world and its hospitals are like: the coefficients of the disease model and the local habits."""

from dataclasses import dataclass, field, replace

import numpy as np

from simulation.synthesize.streams import Stream, random_stream

MAX_HOSPITALS = 50
MAX_PATIENTS = 10_000
"""Patients of one hospital; identifiers of hospitals are disjoint because each owns a block of this size."""

TASK_HOURS = 48.0
"""Hours of evidence that the outcome tasks may use; a trend is a change over this time."""


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Coefficients that hold in every hospital. Symbols are those of docs/synthetic.md."""

    burden_sd: float = 0.9
    """sd over patients of c0, the radiographic burden at admission."""
    burden_trend_sd: float = 0.7
    """sd over patients of tau, the change of the burden over 48 h."""
    physiology_trend_sd: float = 0.8
    """sd over patients of epsilon, the change of the systemic physiology over 48 h; e0 itself has sd 1."""
    respiratory_correlation: float = 0.35
    """Correlation of the charted respiratory state (q0, q1) with the radiographic burden (c0, tau)."""
    trend_end_hours: float = 72.0
    """Trends act until this hour, then the state stays."""

    offset_sd: float = 0.8
    """sd of the static offset of a disease on one side, in logits of severity."""
    fluctuation_sd: float = 0.45
    """Stationary sd of the Ornstein-Uhlenbeck fluctuation of a severity, in logits."""
    fluctuation_hours: float = 18.0
    """Its correlation time."""
    side_correlation: float = 0.7
    """Correlation of the fluctuations of left and right."""

    risk_intercept: float = -2.5
    """Log odds of death of the average patient."""
    risk_sd: float = 2.9
    """Standard deviation of the log odds of death over patients of an average hospital."""
    weight_burden_trend: float = 1.0
    weight_burden_level: float = 0.15
    weight_physiology_level: float = 0.75
    weight_physiology_trend: float = 0.35
    weight_age: float = 0.40
    """Relative weights of the standardised parts of the log odds of death; rescaled to `risk_sd`."""

    change_threshold: float = 0.06
    """A severity (0 to 1) must move by more than this between two radiographs to be called changed."""
    mention_probability: float = 0.8
    """Chance that a report compares a finding that is there."""
    label_noise: float = 0.04
    """Chance that a silver comparison says one of the two wrong words."""


@dataclass(frozen=True, kw_only=True)
class ScannerSettings:
    """How a hospital's radiographs look."""

    contrast: float = 1.0
    """Slope of the tone curve about mid gray."""
    gamma: float = 1.0
    """Exponent of the tone curve."""
    brightness: float = 0.0
    """Added after the tone curve, in units of full scale."""
    noise: float = 0.02
    """sd of pixel noise, in units of full scale."""
    collimation: float = 0.0
    """Share of each side that the collimator may black out."""
    relative_pixels: float = 1.0
    """Long side of an image relative to what the run asks for."""
    aspect: float = 0.95
    """Width over height."""
    blur: float = 1.0
    """The detector resolves the image this many times coarser than its pixels."""


@dataclass(frozen=True, kw_only=True)
class HospitalSettings:
    """One hospital: case mix, scanner, charting habits, and how often its records are untidy."""

    name: str
    mean_age: float = 65.0
    """Years."""
    burden_shift: float = 0.0
    physiology_shift: float = 0.0
    """Mean of c0 and e0 here, in units of their sd."""
    scanner: ScannerSettings = field(default_factory=ScannerSettings)
    missing_variables: frozenset[str] = frozenset()
    """Variables (names of the vocabulary) that this hospital never charts."""
    celsius: bool = False
    """Temperature as item 223762 in Celsius; otherwise 223761 in Fahrenheit."""
    imperial: bool = False
    """Admission height in inches (226707) and weight in pounds (226531); otherwise cm and kg."""
    oxygen_as_fraction: bool = False
    """Inspired oxygen charted as 0.4; otherwise as 40 per cent."""
    arterial_pressure: bool = False
    """Pressures mostly from an arterial line (220050, 220051, 220052) beside the cuff."""
    dirt: float = 0.20
    """Share of patients with one untidiness (simulation.synthesize.course.DIRT)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.dirt <= 1.0:
            raise ValueError(f"hospital {self.name}: expected dirt between 0 and 1, a share of patients")


PRESETS: tuple[HospitalSettings, ...] = (
    HospitalSettings(name="university", scanner=ScannerSettings(noise=0.015)),
    HospitalSettings(
        name="regional",
        mean_age=71.0,
        burden_shift=0.25,
        physiology_shift=-0.15,
        scanner=ScannerSettings(
            contrast=0.82, gamma=1.15, brightness=0.03, noise=0.035, collimation=0.05, relative_pixels=0.85, blur=1.6
        ),
        missing_variables=frozenset({"Troponin-T", "Albumin", "Positive end-expiratory pressure"}),
        celsius=True,
        imperial=True,
        oxygen_as_fraction=True,
    ),
    HospitalSettings(
        name="cardiac",
        mean_age=62.0,
        burden_shift=-0.2,
        physiology_shift=0.35,
        scanner=ScannerSettings(
            contrast=1.15, gamma=0.88, brightness=-0.02, noise=0.02, collimation=0.02, relative_pixels=1.1, aspect=1.0
        ),
        missing_variables=frozenset({"Alkaline phosphate", "Bilirubin", "Magnesium"}),
        arterial_pressure=True,
    ),
)
"""The first three hospitals; later ones are variations of them."""


def hospital_settings(seed: int, index: int) -> HospitalSettings:
    """Settings of hospital `index` (from 0): a preset, or beyond the presets a variation of one drawn from the seed."""
    preset = PRESETS[index % len(PRESETS)]
    if index < len(PRESETS):
        return preset
    rng = random_stream(seed, index, 0, Stream.HOSPITAL)
    scanner = replace(
        preset.scanner,
        contrast=preset.scanner.contrast * float(rng.uniform(0.9, 1.1)),
        gamma=preset.scanner.gamma * float(rng.uniform(0.9, 1.1)),
        noise=float(rng.uniform(0.01, 0.035)),
        relative_pixels=float(rng.uniform(0.85, 1.1)),
    )
    return replace(
        preset,
        name=f"{preset.name}-{index // len(PRESETS) + 1}",
        mean_age=float(np.round(preset.mean_age + rng.normal(0, 3), 1)),
        burden_shift=float(np.round(preset.burden_shift + rng.normal(0, 0.15), 2)),
        physiology_shift=float(np.round(preset.physiology_shift + rng.normal(0, 0.15), 2)),
        scanner=scanner,
    )
