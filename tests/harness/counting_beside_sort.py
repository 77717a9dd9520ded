"""`python -m harness.counting_beside_sort [cuda]`: the counting sort of benchmarks/ beside models/permutation.py."""

import sys
from pathlib import Path

import torch

from models.permutation import sort_pairs


def main(device: str) -> None:
    """Raises AssertionError where they differ: one pair, one place, blocks that are full and not, places that are no
    power of two, and places without a pair."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from counting_sort import sort_by_counting

    generator = torch.Generator().manual_seed(6)
    for n_pairs, n_places, used in ((1, 1, 1), (512, 3, 3), (600, 8, 8), (1300, 60, 60), (700, 64, 5)):
        place_N = torch.randint(used, (n_pairs,), generator=generator).to(device)
        found, expected = sort_by_counting(place_N, n_places), sort_pairs(place_N, n_places, False)
        for ours, other in zip(found[:3], expected[:3], strict=True):
            assert torch.equal(ours, other), (n_pairs, n_places)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
