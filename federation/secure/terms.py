"""What all sites of a round must have worked on, as a digest that they sign before anything is unmasked.

A server that sends one site the model and the others one that learns nothing, or gives them a share of next to none,
would find that site's update in the sum (Pasquini et al. 2022, "Eluding Secure Aggregation in Federated Learning via
Model Inconsistency").
"""

import hashlib

import numpy as np

from federation.settings import RunSettings


def terms_digest(settings: RunSettings, total_samples: int, reference: np.ndarray, control: np.ndarray) -> str:
    """SHA-256 of the run's settings, the number of samples that shares are of, the model that the round begins with,
    float32 [number], and what goes to the sites beside it, float32 [number]."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for part in (reference, control):
        digest.update(f" {total_samples} {part.size} ".encode())
        digest.update(np.ascontiguousarray(part, "<f4").data)
    return digest.hexdigest()
