"""`torchrun … -m harness.ways_of_dispatch`: all ways of benchmarks/dispatch.py on CPUs, their kernels interpreted; what
GPUs share is a file in memory."""

import sys
from pathlib import Path

from harness.shared_file import SharedFile

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import dispatch
import dispatch_ways

if __name__ == "__main__":
    dispatch_ways.SharedMemory = SharedFile  # type: ignore[misc,assignment]
    dispatch.main("cpu", 40, 64)
