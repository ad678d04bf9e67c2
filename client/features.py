"""What a model is given of each radiograph: crops, or the features of a frozen image network, computed once."""

from collections.abc import Sequence

from client.dataset import Inputs
from client.records import SiteRecords
from dipro_model import DiPro
from federation.settings import RunSettings


def inputs_of(sites: Sequence[SiteRecords], model: DiPro, settings: RunSettings) -> Inputs:
    """What the settings let a model see of its samples."""
    return Inputs(radiographs=settings.parts.radiographs, sequence=settings.parts.sequence)
