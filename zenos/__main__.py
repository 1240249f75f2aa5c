"""The program `zenos`, and `python -m zenos`: imports the command line and runs it."""

from zenos.cli import interrupts


def main() -> None:
    """Entry point. An interrupt while it imports ends it without a word."""
    interrupts.end_by_default()
    from zenos.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
