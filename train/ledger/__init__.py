"""The books of a run: what every rank-second went to, across crashes (events.py is the protocol)."""
