"""Sweeps: many runs over seeds, partitions and models from one YAML, with a table and a recommendation at the end."""
