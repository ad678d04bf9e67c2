"""A radiograph as far as a cohort keeps it: put together from its region crops, with or without a tint by region."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from PIL import Image

from client.cohort import Cohort
from dipro_model.vocabulary import REGIONS

_LONGEST_SIDE = 420
"""Pixels of a radiograph that is put together; more than a picture of several shows."""

_TINT = 0.45
"""Share of the tint in the colour of a pixel; the rest is the radiograph."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Radiograph:
    """What the regions of one image cover, in a frame of their own."""

    picture: UInt8[np.ndarray, "high wide"]
    """Gray; black where no region lies."""
    top_region: Int[np.ndarray, "high wide"]
    """Which region's crop each pixel shows; -1 where none lies."""
    extent: tuple[int, int, int, int]
    """x1, y1, x2, y2 in pixels of the radiograph."""
    boxes: Int[np.ndarray, "region 4"]
    """x1, y1, x2, y2 of each region in pixels of the radiograph; empty where it is absent."""

    @property
    def present(self) -> list[int]:
        """The regions that the image has."""
        return [region for region, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()) if x2 > x1 and y2 > y1]

    def draw(self, axes: Axes) -> None:
        """The gray picture."""
        self._show(axes, self.picture, cmap="gray", vmin=0, vmax=255)

    def draw_tinted(self, axes: Axes, colors: Float[np.ndarray, "region rgb"]) -> None:
        """Each pixel tinted with the colour of the region that it shows, so that no two tints mix."""
        gray = np.repeat(self.picture[..., None] / 255.0, 3, axis=2)
        tinted = (1 - _TINT) * gray + _TINT * colors[self.top_region]
        self._show(axes, np.where(self.top_region[..., None] >= 0, tinted, gray))

    def _show(self, axes: Axes, pixels: np.ndarray, **style: object) -> None:
        left, top, right, bottom = self.extent
        axes.imshow(pixels, extent=(left, right, bottom, top), **style)  # pyright: ignore[reportArgumentType]
        axes.set_anchor("S")
        axes.set_axis_off()


def read_radiograph(cohort: Cohort, row: int, dicom_id: str) -> Radiograph:
    """The radiograph at a row of the cohort's regions."""
    boxes = cohort.boxes.loc[cohort.boxes["dicom_id"] == dicom_id].set_index("region").loc[list(REGIONS)]
    return compose_radiograph(cohort.regions[row], boxes[["x1", "y1", "x2", "y2"]].to_numpy())


def compose_radiograph(crops: UInt8[np.ndarray, "region high wide"], boxes: Int[np.ndarray, "region 4"]) -> Radiograph:
    """Put crops back at their boxes, large regions first, black in between.

    The picture's longest side is scaled to at most 420 pixels.
    """
    areas = (boxes[:, 2:].astype(float) - boxes[:, :2]).prod(axis=1)
    present = [int(region) for region in np.argsort(-areas, kind="stable") if areas[region] > 0]
    if not present:
        nothing = np.zeros((1, 1), np.uint8)
        return Radiograph(picture=nothing, top_region=nothing.astype(int) - 1, extent=(0, 0, 1, 1), boxes=boxes)
    left, top = boxes[present, :2].min(axis=0).tolist()
    right, bottom = boxes[present, 2:].max(axis=0).tolist()
    scale = min(1.0, _LONGEST_SIDE / max(right - left, bottom - top))
    size = max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale))
    picture, top_region = np.zeros(size, np.uint8), np.full(size, -1)
    for region in present:
        x1, y1, x2, y2 = np.rint((boxes[region] - [left, top, left, top]) * scale).astype(int).tolist()
        width, height = max(x2 - x1, 1), max(y2 - y1, 1)
        crop = Image.fromarray(np.ascontiguousarray(crops[region])).resize((width, height))
        # A region whose box is rounded to the last row or column keeps inside the picture.
        inside = picture[y1 : y1 + height, x1 : x1 + width]
        inside[:] = np.asarray(crop)[: inside.shape[0], : inside.shape[1]]
        top_region[y1 : y1 + height, x1 : x1 + width] = region
    return Radiograph(picture=picture, top_region=top_region, extent=(left, top, right, bottom), boxes=boxes)
