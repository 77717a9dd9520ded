"""Checkpoints: written behind the steps that follow, hashed, atomic; verified when read (store.py is the way in)."""
