"""The jobs that wire the wings together: one file for each thing that swatool does."""
