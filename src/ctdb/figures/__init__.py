"""Figures from score tables and saved outputs: one module per figure, registered under its name; none trains."""

from ctdb.registry import Registry

FIGURES = Registry("ctdb.figures")
