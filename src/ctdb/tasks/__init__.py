"""Tasks that networks learn: one file per task, registered under its name."""

from ctdb.registry import Registry

TASKS = Registry("ctdb.tasks")
