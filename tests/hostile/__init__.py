"""Files that a stranger might hand over, made by code, and what swatool does with each of them."""
