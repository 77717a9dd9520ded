"""What goes wrong, on purpose or not: injection, watchers, stops, numbers that are not finite."""
