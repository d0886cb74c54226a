"""Comparison of dynamics: fixed points, spectra, forecasts. All of it works on arrays or on any step function."""
