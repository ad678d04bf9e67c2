"""Radiographs show severities where the boxes say, at the size that small models see, and nothing else moves much."""

import numpy as np
import pytest
from PIL import Image

from dipro_model.vocabulary import REGIONS
from simulation.synthesize.anatomy import View, draw_anatomy, draw_view, pixel_boxes
from simulation.synthesize.course import FINDINGS
from simulation.synthesize.progression import MAIN_REGION
from simulation.synthesize.radiograph import draw_radiograph, prepare_canvas
from simulation.synthesize.settings import PRESETS, ScannerSettings

STILL = View(shift_x=0.0, shift_y=0.0, scale=1.0, rotation=0.0, exposure=0.0)
WIDTH, HEIGHT = 182, 192


@pytest.fixture(scope="module")
def chests():
    anatomies = [draw_anatomy(np.random.default_rng(seed), ventilated=seed % 2 == 0) for seed in range(6)]
    return [(anatomy, prepare_canvas(anatomy, WIDTH, HEIGHT)) for anatomy in anatomies]


def shoot(chest, severities, view=STILL, scanner=None, seed=0):
    anatomy, canvas = chest
    rng = np.random.default_rng(seed)
    return draw_radiograph(rng, anatomy, canvas, severities, view, scanner or ScannerSettings())


def region_mean(chest, pixels, region, view=STILL):
    """Mean gray value of a region as a model of 32-pixel crops sees it."""
    box = pixel_boxes(chest[0], view, WIDTH, HEIGHT)[region]
    return float(np.asarray(Image.fromarray(pixels).crop(box).resize((32, 32), Image.Resampling.NEAREST)).mean())


def severities(**changed):
    values = np.full(len(FINDINGS), 0.2)
    for index, (disease, side) in enumerate(FINDINGS):
        values[index] = changed.get(f"{disease} {side}".replace(" ", "_"), 0.2)
    return values


@pytest.mark.parametrize(("disease", "side"), FINDINGS)
@pytest.mark.parametrize("scanner", [preset.scanner for preset in PRESETS], ids=[preset.name for preset in PRESETS])
def test_severity_brightens_its_region_beyond_the_noise_of_taking_the_image(chests, disease, side, scanner) -> None:
    region = MAIN_REGION[disease] if side == "middle" else f"{side} {MAIN_REGION[disease]}"
    rises, jitters = [], []
    for seed, chest in enumerate(chests):
        low, high = severities(), severities(**{f"{disease} {side}".replace(" ", "_"): 0.8})
        images = [shoot(chest, values, scanner=scanner, seed=seed) for values in (low, high)]
        rises.append(region_mean(chest, images[1], region) - region_mean(chest, images[0], region))
        view = draw_view(np.random.default_rng(seed))
        again = shoot(chest, low, view=view, scanner=scanner, seed=seed)
        jitters.append(region_mean(chest, again, region, view) - region_mean(chest, images[0], region))
    assert np.mean(rises) > 2.0 * np.std(jitters)
    assert np.mean(rises) > 4.0  # of 255 gray values


def test_boxes_hold_what_they_name(chests) -> None:
    anatomy, _ = chest = chests[0]
    pixels = shoot(chest, np.full(len(FINDINGS), 0.02))
    means = {region: region_mean(chest, pixels, region) for region in REGIONS}
    # Air is dark, heart and spine are bright; left lies on the right side of the image.
    assert max(means["left lung"], means["right lung"]) < min(means["cardiac silhouette"], means["mediastinum"])
    boxes = pixel_boxes(anatomy, STILL, WIDTH, HEIGHT)
    assert boxes["left lung"][0] > boxes["right lung"][0]
    for x1, y1, x2, y2 in boxes.values():
        assert 0 <= x1 < x2 < WIDTH
        assert 0 <= y1 < y2 < HEIGHT


def test_boxes_move_with_the_view(chests) -> None:
    chest = chests[1]
    moved = View(shift_x=0.06, shift_y=-0.04, scale=1.0, rotation=0.0, exposure=0.0)
    healthy = np.full(len(FINDINGS), 0.02)
    quiet = ScannerSettings(noise=0.0)
    still, shifted = shoot(chest, healthy, scanner=quiet), shoot(chest, healthy, view=moved, scanner=quiet)
    for region in REGIONS:
        before = region_mean(chest, still, region)
        assert region_mean(chest, shifted, region, moved) == pytest.approx(before, abs=2.5), region


def test_static_anatomy_is_the_same_in_all_images_of_a_patient(chests) -> None:
    quiet = ScannerSettings(noise=0.0)
    same, worse = (shoot(chests[2], np.full(len(FINDINGS), z), scanner=quiet).astype(int) for z in (0.2, 0.9))
    assert np.abs(same[:20] - worse[:20]).max() <= 1  # neck and shoulders
    assert np.abs(same - worse).max() > 60  # lungs


def test_scanners_look_different(chests) -> None:
    spreads = {
        preset.name: shoot(chests[3], np.full(len(FINDINGS), 0.4), scanner=preset.scanner).std() for preset in PRESETS
    }
    assert max(spreads.values()) > 1.15 * min(spreads.values())


def test_drawing_is_deterministic(chests) -> None:
    values = np.linspace(0.1, 0.9, len(FINDINGS))
    assert np.array_equal(shoot(chests[4], values, seed=7), shoot(chests[4], values, seed=7))
