"""Recipes: a whole average, from its inputs to its checks, as one YAML file that a CI runs."""
