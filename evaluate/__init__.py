"""Evaluate: reconstructions spliced into the source model, and what that costs it."""
