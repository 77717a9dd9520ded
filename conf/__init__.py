"""What a run is: YAML groups, one folder a choice, over typed dataclasses."""
