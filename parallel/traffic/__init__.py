"""What a step says between ranks: predicted from the config in closed form, and measured; the two are equal."""
