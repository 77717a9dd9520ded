"""`switchyard bench`: several configurations beside each other, in rounds, and what bounds each."""
