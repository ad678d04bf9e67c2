"""A hospital: prepares its records, keeps them, trains on them."""
