"""`python -m dipro_fed` is `dipro-fed`."""

from dipro_fed.main import run

run()
