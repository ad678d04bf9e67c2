"""Synthetic hospitals, partitioning, baselines and the comparison with centralized training."""
