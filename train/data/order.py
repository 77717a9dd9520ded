"""The order in which samples are taken: shuffled anew each epoch, yet a pure function of the samples consumed.

A resumed run needs only its position, no saved permutation. Each epoch is a Feistel network keyed by (seed, epoch)
over pairs of digits in base ⌈√n⌉; the few values it sends past n walk on along their cycle until one is inside.
Both ideas are from Black & Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (cycle walking, generalized
Feistel), the base of format-preserving encryption.
"""

from hashlib import blake2b
from math import isqrt

ROUNDS = 6  # four are pseudo-random on a large domain (Luby & Rackoff 1988); a small one wants a few more


class EpochShuffle:
    """`EpochShuffle(n, seed)[position]` is the sample at a position of the endless training stream.

    Positions [k·n, (k+1)·n) are epoch k and hold every sample in [0, n) once. Constant memory, any n >= 1,
    the same on every machine.
    """

    def __init__(self, n: int, seed: int) -> None:
        """Order `n` samples by `seed`. Raises ValueError if there are none."""
        if n < 1:
            raise ValueError(f"cannot order {n} samples")
        self.n = n
        self.seed = seed
        self.base = isqrt(n - 1) + 1  # the least base whose square holds n: at most 2√n values lie outside

    def __getitem__(self, position: int) -> int:
        """Sample index in [0, n) at `position` >= 0. Raises IndexError below 0."""
        if position < 0:
            raise IndexError(f"position {position} is before the first sample")
        epoch, index = divmod(position, self.n)
        index = self._permute(index, epoch)
        while index >= self.n:
            index = self._permute(index, epoch)
        return index

    def _permute(self, index: int, epoch: int) -> int:
        """A bijection of [0, base²): each round adds to one digit a hash of the other, which can be undone."""
        left, right = divmod(index, self.base)
        for turn in range(ROUNDS):
            left, right = right, (left + self._hash(epoch, turn, right)) % self.base
        return left * self.base + right

    def _hash(self, epoch: int, turn: int, digit: int) -> int:
        message = f"{self.seed} {epoch} {turn} {digit}".encode()
        return int.from_bytes(blake2b(message, digest_size=8).digest(), "little")
