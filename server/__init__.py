"""The coordinator: rounds, aggregation, checkpoints; it never reads a patient."""
