"""What a GPU does: bits first, then speed and memory, section by section, the most important ones first.

Each section is measured in a process of its own, which is ended when its fraction of the time is over. The table is
printed after each section, so that a call that is cut short has told what it found.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from table import Result, print_json, print_table

from contrails.cluster.queue.freeze import ALLOCATOR

_ENVIRONMENT = ALLOCATOR | {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # as jobs have it
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a library that looks for GPUs must not use one: then nothing can be forked
}


def main() -> None:
    arguments = _arguments()
    if not os.environ.items() >= _ENVIRONMENT.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _ENVIRONMENT)
    from gpu_sections import measured, title  # imports torch, which takes seconds: after the restart

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results: list[Result] = []
    folder = Path(tempfile.mkdtemp(prefix="contrails-gpu-"))
    try:
        for found in measured(folder, arguments.device, 60 * arguments.minutes):
            results += found
            print_table(title(arguments.device), results, Console(stderr=arguments.json))
    finally:  # what was found counts, too, when the call is cut short
        shutil.rmtree(folder, ignore_errors=True)
        if arguments.json:
            print_json(results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench gpu", description="Prove and measure training on a GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all sections together (default: 8)")
    parser.add_argument("--json", action="store_true", help="print JSON at the end; tables go to standard error")
    parser.add_argument(
        "--device",
        choices=["cuda", "cpu"],
        default="cuda",
        help="cpu tries the script itself on a machine without a GPU, with tiny sizes; its figures mean nothing",
    )
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes {arguments.minutes:g}: expected a number above 0")
    return arguments


if __name__ == "__main__":
    main()
