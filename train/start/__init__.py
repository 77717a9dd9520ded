"""What `python -m train` is made of: a job accepted, and put together."""
