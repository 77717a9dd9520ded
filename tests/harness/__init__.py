"""What the tests stand on: gloo processes that outlive a test, and torchrun with nothing left behind."""
