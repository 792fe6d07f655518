"""LCTR: the localizer as torch modules."""
