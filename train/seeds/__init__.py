"""The metrics, losses and objectives that people know from two earlier SAE libraries.

Names, arguments and meaning are those of `sparse_autoencoder` (the metrics and losses)
and of `saev` (the objectives); what is corrected is listed in docs/seeds.md.
"""
