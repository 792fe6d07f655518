"""Calibration without real data: statistics, FDDA, synthetic images, histograms, ranges."""
