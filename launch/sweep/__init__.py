"""`switchyard sweep`: every combination of values, a job each, resumable; and a page that compares them."""
