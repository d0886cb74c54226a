"""Observation models: the distribution of what is recorded, given what the readout says. One file per distribution."""

from ctdb.registry import Registry

OBSERVATIONS = Registry("ctdb.models.observations")
