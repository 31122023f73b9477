"""Train: rows of a store into sparse autoencoders."""
