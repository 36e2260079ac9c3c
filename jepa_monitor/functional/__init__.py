"""Stateless functions on tensors: collapse, Gaussianity, calibration and outliers."""
