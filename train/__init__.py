"""One run: data, optimizer, loop, checkpoint, measurement."""
