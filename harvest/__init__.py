"""Harvest: text through a source model, activations into a store."""
