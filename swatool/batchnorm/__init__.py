"""Recomputing the running statistics of BatchNorm layers for a model whose weights were changed."""
