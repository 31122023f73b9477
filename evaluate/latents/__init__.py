"""What each latent does: how often, how strongly and where it is active, and what it writes."""
