"""Recipes, the trainer, and flow maps of a teacher."""

from .. import common  # noqa: F401 (filters a warning of packages that are imported next)
