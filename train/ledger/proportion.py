"""Whole numbers divided in proportion, so that the parts sum to the whole exactly."""

from collections.abc import Mapping, Sequence


def divide(amount: int, weights: Sequence[int]) -> list[int]:
    """`amount`, at least 0, in parts as `weights` are, each at least 0; in equal parts if all of them are 0.

    >>> divide(10, [1, 1, 1])
    [3, 3, 4]
    """
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    parts, given, passed = [], 0, 0
    for weight in weights:
        passed += weight
        until = amount * passed // whole
        parts.append(until - given)
        given = until
    return parts


def scale(buckets: Mapping[str, int], amount: int) -> dict[str, int]:
    """`buckets` with `amount` in all of them together."""
    return dict(zip(buckets, divide(amount, list(buckets.values())), strict=True))
