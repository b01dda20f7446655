"""The command `contrails`; `python -m contrails` is how jobs call the frozen copy of the package."""

import signal


def main() -> None:
    """Run the command line; while it is still imported, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored stays ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from contrails.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
