"""From YAML to checked plain values. OmegaConf is only used in this room."""

from retroflow.recipe.loading import load
from retroflow.recipe.resolved import Recipe
from retroflow.recipe.schema import RecipeSchema, Section, Slot

__all__ = ["Recipe", "RecipeSchema", "Section", "Slot", "load"]
