"""`python -m modelassay` is the command line."""

from modelassay.cli import main

if __name__ == "__main__":
    main()
