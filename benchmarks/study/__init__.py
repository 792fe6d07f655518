"""The calibration study: what images of each kind are worth, one experiment a module; see `calibration_study.py`."""
