"""Pictures of patients, of models and of what models make of patients; matplotlib is wanted here and nowhere else."""
