"""A site's side of the exchange: the model from what the server sent, and what goes back of the trained one."""

import numpy as np

from client.site_state import SiteState, SiteStateError
from federation.codecs import Codec, Payload
from federation.messages import WHOLE, Instruction

_RESIDUAL = "residual"


def received_weights(instruction: Instruction, state: SiteState, codec: Codec | None) -> np.ndarray:
    """float32 [number]: the model that the server means; with a codec it is kept for the next instruction.

    Raises SiteStateError where the site does not have the version that the changes are of.
    """
    if codec is None:
        return instruction.weights
    if instruction.base == WHOLE:
        weights = instruction.weights
    else:
        held = state.find(_model(instruction.base))
        if held is None:
            raise SiteStateError(
                f"{state.site}: expected version {instruction.base} of the model in the site's folder, found none; "
                "the server will send the whole model in the next round"
            )
        if instruction.base == instruction.version:
            return held
        weights = codec.decode(Payload.from_array(instruction.weights), held)
    state.keep(_model(instruction.version), weights)
    state.drop("model", but={_model(instruction.version)})
    return weights


def sent_weights(
    weights: np.ndarray, reference: np.ndarray, state: SiteState, codec: Codec | None, server_round: int
) -> np.ndarray:
    """What of the trained weights travels; what the codec leaves out stays at the site for its next round."""
    if codec is None:
        return weights
    payload, residual = codec.encode(weights, reference, state.before_round(_RESIDUAL, server_round))
    if residual is not None:
        state.keep_of_round(_RESIDUAL, server_round, residual)
    return payload.to_array()


def _model(version: int) -> str:
    return f"model-{version}"
