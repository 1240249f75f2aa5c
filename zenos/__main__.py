"""`python -m zenos`: the command line, where its script isn't on the path."""

from zenos.cli.main import main

if __name__ == "__main__":
    main()
