"""`switchyard goodput`: what every rank-second of a run went to."""
