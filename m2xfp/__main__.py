"""``python -m m2xfp``: the command line, where the script is not on the path."""

from m2xfp.cli import main

if __name__ == "__main__":
    main()
