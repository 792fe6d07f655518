"""Build, run, inspect and benchmark engines; one file per backend, no training stack needed."""
