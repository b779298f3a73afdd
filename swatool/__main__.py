"""`python -m swatool`, and the console script of the same name."""

from swatool.cli import main

if __name__ == "__main__":
    main()
