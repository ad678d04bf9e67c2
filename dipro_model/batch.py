"""One stay, many stays padded to a batch, and the rule of padding: a mask says what is real, no value does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor

from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, NOT_MENTIONED, REGIONS


@dataclass(frozen=True, kw_only=True, eq=False)
class Stay:
    """One stay without padding: every frame and every hour in it is real, so it needs no mask."""

    regions: Shaped[Tensor, "frame region *image"]
    """The ten regions of each radiograph in time order: crops, [frame, region, channel, high, wide] with 1 or 3
    channels, uint8 or floating in [0, 1]; or features of a frozen image network, [frame, region, feature]."""

    ehr: Float[Tensor, "step variable"]
    """Hourly values as z-scores."""

    ehr_hours: Num[Tensor, " step"]
    """Hours since ICU admission of each row of `ehr`."""

    intervals: Num[Tensor, "pair 2"]
    """Hours since ICU admission of the two radiographs of each pair of neighbours."""

    demographics: Float[Tensor, " demographic"]
    """Age, height and weight as z-scores, then zeros and ones."""

    label: Num[Tensor, "*output"] | None = None
    """Progression: [disease] in 0..3; mortality: 0 or 1; length of stay: 0..3; None where it is unknown."""

    region_progression: Int[Tensor, "pair region disease"] | None = None
    """Progression of each region and disease, 0..3; None where it is unknown."""

    def __post_init__(self) -> None:
        frames = self.regions.shape[0] if self.regions.ndim in (3, 5) else 0
        if frames < 2:
            raise ValueError(
                "regions: expected [frame, region, channel, height, width] or [frame, region, feature] with two "
                f"frames or more, got shape {list(self.regions.shape)}; the model reads pairs of radiographs"
            )
        steps = self.ehr.shape[0]
        _require_shapes(self, axes=(), frames=frames, steps=steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Stays padded to the longest of them. What lies where a mask is false is never read."""

    regions: Shaped[Tensor, "stay frame region *image"]
    """Crops, [.., channel, high, wide] with 1 or 3 channels, uint8 (0..255) or floating in [0, 1], without further
    normalisation; or features of a frozen image network, [.., feature]."""

    frame_mask: Bool[Tensor, "stay frame"]
    """True where a radiograph exists."""

    ehr: Float[Tensor, "stay step variable"]
    """Hourly values as z-scores."""

    ehr_mask: Bool[Tensor, "stay step"]
    """True for real hours."""

    ehr_hours: Num[Tensor, "stay step"]
    """Hours since ICU admission of each step."""

    intervals: Num[Tensor, "stay pair 2"]
    """Hours since ICU admission of the two radiographs of each pair."""

    demographics: Float[Tensor, "stay demographic"]
    """Age, height and weight as z-scores, then zeros and ones."""

    label: Num[Tensor, "stay *output"] | None = None
    """Progression: [stay, disease] in 0..3; mortality: [stay] 0 or 1; length of stay: [stay] in 0..3."""

    region_progression: Int[Tensor, "stay pair region disease"] | None = None
    """0 worsened, 1 improved, 2 no change, 3 not mentioned (never enters a loss)."""

    def __post_init__(self) -> None:
        if self.regions.ndim not in (4, 6) or self.regions.shape[1] < 2:
            raise ValueError(
                "regions: expected [stay, frame, region, channel, height, width] or [stay, frame, region, feature] "
                f"with two frames or more, got shape {list(self.regions.shape)}"
            )
        stays, frames = self.regions.shape[:2]
        steps = self.ehr.shape[1] if self.ehr.ndim == 3 else 0
        if steps < 1:
            raise ValueError(
                "ehr: expected [stay, step, variable] with one step or more (masked where no hour is recorded), "
                f"got shape {list(self.ehr.shape)}"
            )
        _require_shapes(self, axes=(stays,), frames=frames, steps=steps)
        for name, expected in (("frame_mask", (stays, frames)), ("ehr_mask", (stays, steps))):
            mask = getattr(self, name)
            if mask.dtype != torch.bool or tuple(mask.shape) != expected:
                raise ValueError(f"{name}: expected bool {list(expected)}, got {mask.dtype} {list(mask.shape)}")

    def __len__(self) -> int:
        """Number of stays."""
        return self.regions.shape[0]

    @property
    def pair_mask(self) -> Bool[Tensor, "stay pair"]:
        """True where both radiographs of a pair exist."""
        return self.frame_mask[:, :-1] & self.frame_mask[:, 1:]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on another device; types stay as they are."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; data loaders call this by its name."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: change(value) for name, value in given.items() if value is not None})


def collate(stays: Sequence[Stay], *, empty: Callable[..., Tensor] = torch.empty) -> Batch:
    """Pad stays to the most frames and hours among them, and write down in the masks what is real.

    A batch has at least one step: stays without any hour get a masked one. `empty(shape, dtype=...)` makes the tensor
    that crops, the bulk of a batch, are copied into.
    Raises ValueError where the stays differ in the size, channels or type of their crops, or where only some of
    them are labelled.
    """
    if not stays:
        raise ValueError("collate: expected one stay or more, got none")
    crops = {(tuple(stay.regions.shape[1:]), stay.regions.dtype) for stay in stays}
    if len(crops) > 1:
        raise ValueError(f"regions: expected crops of one shape and type in a batch, got {sorted(map(str, crops))}")
    num_frames = [stay.regions.shape[0] for stay in stays]
    num_steps = [stay.ehr.shape[0] for stay in stays]
    frames, steps = max(num_frames), max(1, *num_steps)
    labels = _all_or_none("label", [stay.label for stay in stays])
    progressions = _all_or_none("region_progression", [stay.region_progression for stay in stays])
    return Batch(
        regions=_pad([stay.regions for stay in stays], length=frames, empty=empty),
        frame_mask=_real(num_frames, length=frames),
        ehr=_pad([stay.ehr for stay in stays], length=steps),
        ehr_mask=_real(num_steps, length=steps),
        ehr_hours=_pad([stay.ehr_hours for stay in stays], length=steps),
        intervals=_pad([stay.intervals for stay in stays], length=frames - 1),
        demographics=torch.stack([stay.demographics for stay in stays]),
        label=torch.stack(labels) if labels else None,
        region_progression=_pad(progressions, length=frames - 1, fill=NOT_MENTIONED) if progressions else None,
    )


def _pad(
    tensors: Sequence[Tensor], *, length: int, fill: int = 0, empty: Callable[..., Tensor] = torch.empty
) -> Tensor:
    lengths = [tensor.shape[0] for tensor in tensors]
    padded = empty((len(tensors), length, *tensors[0].shape[1:]), dtype=tensors[0].dtype)
    if min(lengths) == length:
        return torch.stack(list(tensors), out=padded)
    # No value of a crop is harmful: those of padding stay as the memory is.
    are_crops = padded.dtype == torch.uint8
    for row, tensor, real in zip(padded, tensors, lengths, strict=True):
        row[:real] = tensor
        if not are_crops and real < length:
            row[real:] = fill
    return padded


def _real(lengths: Sequence[int], *, length: int) -> Bool[Tensor, "stay position"]:
    return torch.arange(length)[None, :] < torch.tensor(lengths)[:, None]


def _all_or_none(name: str, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    given = [tensor for tensor in tensors if tensor is not None]
    if given and len(given) < len(tensors):
        raise ValueError(f"{name}: expected it for all {len(tensors)} stays of a batch or for none, got {len(given)}")
    return given


def _require_shapes(holder: Stay | Batch, *, axes: tuple[int, ...], frames: int, steps: int) -> None:
    """Check the shapes that a stay and a batch share; `axes` holds the number of stays, or nothing."""
    image = tuple(holder.regions.shape[len(axes) + 2 :])
    expected: dict[str, tuple[int, ...]] = {
        "regions": (*axes, frames, len(REGIONS), *image),
        "ehr": (*axes, steps, len(EHR_VARIABLES)),
        "ehr_hours": (*axes, steps),
        "intervals": (*axes, frames - 1, 2),
        "demographics": (*axes, len(DEMOGRAPHICS)),
        "region_progression": (*axes, frames - 1, len(REGIONS), len(DISEASES)),
    }
    for name, shape in expected.items():
        value = getattr(holder, name)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(value.shape)}")
    if len(image) == 3 and image[0] not in (1, 3):
        raise ValueError(f"regions: expected 1 or 3 channels behind the regions, got {image[0]}")
    if not holder.regions.is_floating_point() and (len(image) == 1 or holder.regions.dtype != torch.uint8):
        raise ValueError(f"regions: expected uint8 or floating crops, or floating features, got {holder.regions.dtype}")
    if holder.label is not None and tuple(holder.label.shape) not in (axes, (*axes, len(DISEASES))):
        raise ValueError(
            f"label: expected shape {list(axes)} or {[*axes, len(DISEASES)]}, got {list(holder.label.shape)}"
        )
