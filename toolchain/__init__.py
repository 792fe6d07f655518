"""The localizer (model, data, training, evaluation) and the run that deploys it."""

__version__ = "0.1.0"
