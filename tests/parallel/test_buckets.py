"""Which gradients go in one collective."""

from parallel.buckets import divide_into_buckets


def test_a_bucket_is_closed_once_it_holds_enough() -> None:
    sizes = [("a", 3), ("a", 3), ("a", 9), ("a", 1), ("a", 1)]
    assert divide_into_buckets(sizes, 5) == [[0, 1], [2], [3, 4]]
    assert divide_into_buckets(sizes, 1) == [[0], [1], [2], [3], [4]]
    assert divide_into_buckets(sizes, 100) == [[0, 1, 2, 3, 4]]


def test_what_has_nothing_in_common_is_in_other_buckets() -> None:
    sizes = [("a", 3), ("b", 3), ("a", 3), ("b", 3), ("a", 3)]
    assert divide_into_buckets(sizes, 5) == [[0, 2], [1, 3], [4]]
    assert divide_into_buckets([], 5) == []
