"""Raw hospital files to a prepared cohort."""
