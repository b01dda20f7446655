"""The entry point of the command `contrails`; jobs start it as `python -m contrails` from the frozen package."""

import signal


def main() -> None:
    """Run the command line; Ctrl-C during its imports ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # under nohup it is ignored and stays so
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from contrails.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
