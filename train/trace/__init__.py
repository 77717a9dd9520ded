"""The deep trace: one step as the profiler saw it, reduced to what hid what."""
