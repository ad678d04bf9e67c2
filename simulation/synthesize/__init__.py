"""Synthetic hospitals: a small disease model, written as raw files of MIMIC's shape (docs/synthetic.md).

The order of the data: settings -> course (latents, stay, outcome) -> charting | progression | radiograph -> mimic_files
-> hospital (one folder) -> generate (all hospitals). `oracles` says how much each kind of evidence can tell.
"""
