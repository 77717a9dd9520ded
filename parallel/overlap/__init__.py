"""Two micro-batches side by side: one's exchanges behind the other's compute."""
