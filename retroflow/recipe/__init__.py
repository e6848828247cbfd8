"""YAML in, checked plain values out. OmegaConf is used in this room and nowhere else."""

from retroflow.recipe.loading import load
from retroflow.recipe.resolved import Recipe
from retroflow.recipe.schema import RecipeSchema, Section, Slot

__all__ = ["Recipe", "RecipeSchema", "Section", "Slot", "load"]
