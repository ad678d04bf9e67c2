"""An update as whole numbers that are added modulo 2^64 and 2^32, and the masks over them.

A mask is the stream of AES-256 in counter mode under a key of its own (NIST SP 800-38A), so that to whoever lacks the
key a masked update is as good as random bytes.
"""

from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from federation.secure.errors import SecureError

_AT_ONCE = 1 << 20
"""Bytes of a mask that are made together; they stay in the processor's cache."""
_CIPHER_BLOCK = 16


class Words:
    """A row of numbers: `wide` modulo 2^64 first, `narrow` modulo 2^32 behind them, in one array of bytes."""

    def __init__(self, num_wide: int, num_narrow: int, content: np.ndarray | None = None) -> None:
        """Zeros, or the numbers in `content`, uint8 [byte]. Raises SecureError where there are not as many bytes."""
        num_bytes = 8 * num_wide + 4 * num_narrow
        if content is None:
            content = np.zeros(num_bytes, np.uint8)
        if content.dtype != np.uint8 or content.shape != (num_bytes,):
            raise SecureError(
                f"expected a masked update as uint8 [{num_bytes}], found {content.dtype} {list(content.shape)}"
            )
        self.content = content
        self.wide, self.narrow = content[: 8 * num_wide].view("<u8"), content[8 * num_wide :].view("<u4")

    def copy(self) -> "Words":
        """The same numbers, which may be changed."""
        return Words(len(self.wide), len(self.narrow), self.content.copy())

    def add(self, other: "Words") -> None:
        """Add the numbers of another row, in place."""
        for ours, theirs in ((self.wide, other.wide), (self.narrow, other.narrow)):
            np.add(ours, theirs, out=ours)

    def add_mask(self, seed: bytes, *, subtract: bool = False) -> None:
        """Add the mask of a seed of 32 bytes, or take it away, in place. A seed must never mask two updates."""
        stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(_CIPHER_BLOCK))).encryptor()
        zeros, buffer = bytes(_AT_ONCE), bytearray(_AT_ONCE + _CIPHER_BLOCK - 1)
        change = np.subtract if subtract else np.add
        for part in self._parts():
            stream.update_into(memoryview(zeros)[: part.nbytes], buffer)
            change(part, np.frombuffer(buffer, part.dtype, len(part)), out=part)

    def _parts(self) -> Iterator[np.ndarray]:
        for row in (self.wide, self.narrow):
            step = _AT_ONCE // row.itemsize
            yield from (row[start : start + step] for start in range(0, len(row), step))
