"""What a run trains on: token sources, the order of their samples, and the batches each rank gets."""
