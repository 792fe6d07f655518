"""Labelled images with boxes: where they come from and how they are prepared."""
