"""Import: activations that somebody already has, into a store that `train` reads."""
