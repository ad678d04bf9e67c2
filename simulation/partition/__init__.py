"""Splitting one cohort into sites as hospitals would differ: by patient, seeded, with a manifest and a picture."""
