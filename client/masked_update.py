"""A site's update of one round on its way out: written as whole numbers, masked, kept until the server has it."""

from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict

from client.masking import Masking
from federation.secure.steps import MaskStep
from federation.secure.update_form import UpdateForm


@dataclass(frozen=True, kw_only=True)
class MaskedUpdate:
    """What masks one site's update of one round."""

    masking: Masking
    step: MaskStep
    """What the instruction to train says of it."""

    def write(
        self,
        form: UpdateForm,
        weights: np.ndarray,
        reference: np.ndarray,
        control: np.ndarray,
        *,
        num_samples: int,
        total_samples: int,
        terms: str,
    ) -> np.ndarray:
        """uint8 [byte]: the masked update, which says nothing without the others'. Raises SecureError.

        `terms` is the digest of what this site worked on.
        """
        words = form.write(weights, reference, control, num_samples=num_samples, share=num_samples / total_samples)
        self.masking.mask(self.step, words, terms)
        return words.content

    def keep_reply(self, content: RecordDict) -> RecordDict:
        """What may leave: this, or what left before."""
        return self.masking.keep_reply(self.step, content)

    def find_reply(self) -> RecordDict | None:
        """What has left already in this attempt, if anything."""
        return self.masking.find_reply(self.step)
