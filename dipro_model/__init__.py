"""DiPro alone: the model, its losses and metrics; no Flower, no files, no tables."""
