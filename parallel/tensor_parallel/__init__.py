"""Tensor parallelism: every matrix and every sequence cut over neighbouring ranks."""
