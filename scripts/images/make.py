"""Make the pictures of README: a run that is killed and resumes, in a terminal, and the report of this run.

The run is that of scripts/quickstart, in a temporary folder. A picture is replaced only when the new
one is complete; the terminal is shown only if the weights of the killed fold are equal to those of an undisturbed one.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageChops
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from contrails.cluster.status.fold_state import ALIVE, FoldState
from contrails.cluster.status.overview import overview
from contrails.errors import ContrailsError, NodeError, TrainingError
from contrails.files import read_json, write_atomic
from contrails.runs.folder import Run, all_runs

IMAGES = Path(__file__).parent
CLONE = IMAGES.parents[1]
COLUMNS = 96
RUN, UNDISTURBED = Run(Path("runs/default")), Run(Path("runs/undisturbed"))
KILLED = "1"
"""The fold that is killed."""
PATIENCE_S = 3600.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, MARGIN = 1240, 20
"""Of the picture of the report, and what is kept below its last part, in pixels."""

_DARK = [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)]
_DARK += [(88, 166, 255), (188, 140, 255), (57, 197, 207), (177, 186, 196)]
_BRIGHT = [(139, 148, 158), (255, 161, 152), (86, 211, 100), (227, 179, 65)]
_BRIGHT += [(121, 192, 255), (210, 168, 255), (86, 212, 221), (255, 255, 255)]
THEME = TerminalTheme((22, 27, 34), (230, 237, 243), _DARK, _BRIGHT)
"""Its own dark background makes the picture readable on a light and on a dark page."""
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font: {char_height}px/{line_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre;
}}
.{unique_id}-title {{ font: 18px system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""As rich's own, without the font that it would load from the network, which no page lets an image do."""

EXTRACT = """
<style>:root { color-scheme: light; } #scores, #attempts, #recipe, footer { display: none; }</style>
<script>
const sorted = document.getElementById("order");
sorted.value = "dice down";
sorted.dispatchEvent(new Event("change"));
for (const later of [...document.querySelectorAll(".record")].slice(4)) later.hidden = true;
for (const later of [...document.querySelectorAll("#curves figure")].slice(3)) later.hidden = true;
</script>
"""
"""What is added to the report so that it shows the part that is pictured."""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.pop("CONTRAILS_RUNS", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            make_pictures()
        finally:
            end_jobs()  # of a run that did not go as expected


def make_pictures() -> None:
    make_data()
    write_atomic(IMAGES / "killed.svg", kill_and_resume())
    browser = find_browser()
    run("contrails submit --folds 5 --site local --wait")
    run("contrails aggregate default --data data/demo/test.h5")
    run("contrails report default -o report.html")
    write_atomic(IMAGES / "report.png", screenshot(browser, Path("report.html")))


def make_data() -> None:
    """Make what scripts/quickstart makes."""
    shutil.copytree(CLONE / "jobs", "jobs")
    run("contrails demo data/demo/raw --size 128")
    run("contrails prepare data/demo/raw data/demo/train.h5")
    run("contrails prepare data/demo/raw data/demo/test.h5 --split test")
    run("contrails split data/demo/train.h5 --folds 5 -o filelists/demo.csv")


def run(command: str) -> None:
    print(f"$ {command}", flush=True)
    subprocess.run(["bash", "-c", command], check=True)


def kill_and_resume() -> str:
    """Train two folds, kill one, resume it, and return what a terminal showed, as SVG."""
    terminal, fold = Terminal(), RUN.fold(KILLED)
    terminal.type("contrails submit --fold 0,1 --site local")
    wait_for(lambda: states()[KILLED].epoch >= 8)
    terminal.type("contrails status default")
    terminal.type(f"kill -9 {read_json(fold.attempts()[-1].job)['pid']}  # the process that trains fold {KILLED}")
    wait_for(lambda: states()[KILLED].state == "failed")
    terminal.type("contrails status default")
    terminal.type("contrails resume default")
    run(f"contrails submit --fold {KILLED} --name undisturbed --site local")
    wait_for(lambda: not living())
    terminal.type("contrails status default")
    last = require_equal_weights()
    terminal.type(f"sha256sum runs/*/folds/{KILLED}/weights/{last}-* | cut -c 1-16,65-")
    return terminal.svg("A fold is killed and resumes")


def states() -> dict[str, FoldState]:
    return {state.fold: state for state in overview([RUN])[RUN]}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TrainingError(f"the folds did not go on within {PATIENCE_S:.0f} s: {states()}")
        time.sleep(0.5)


def require_equal_weights() -> str:
    """Check that the killed fold ended as the undisturbed one; return the last epoch as files are named by it."""
    final = []
    for each in (RUN, UNDISTURBED):
        done = each.fold(KILLED).read_done()
        if done is None:
            raise TrainingError(f"expected fold {KILLED} of {each.name} to be finished, found {overview([each])[each]}")
        final.append(done["weights"]["final"])
    if final[0]["sha256"] != final[1]["sha256"]:
        raise TrainingError(f"expected equal weights of both runs, found {final}; the picture stays as it was")
    return str(final[0]["file"]).split("-")[0]


def end_jobs() -> None:
    for each in living():
        run(f"contrails cancel {each.name}")
    wait_for(lambda: not living())


def living() -> list[Run]:
    return [each for each in all_runs() if any(state.state in ALIVE for state in overview([each])[each])]


class Terminal:
    """A terminal that shows commands with their real output; lines without a word are left out."""

    def __init__(self) -> None:
        self._console = Console(
            record=True, file=io.StringIO(), width=COLUMNS, force_terminal=True, color_system="truecolor"
        )

    def type(self, command: str) -> None:
        print(f"$ {command}", flush=True)
        environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
        done = subprocess.run(
            ["bash", "-c", command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout, end="", flush=True)
        done.check_returncode()
        self._console.print(Text.assemble(("$ ", "bold green"), (command, "bold bright_blue")))
        for line in map(Text.from_ansi, done.stdout.splitlines()):
            line.rstrip()
            if line:
                self._console.print(line)

    def svg(self, title: str) -> str:
        return self._console.export_svg(title=title, theme=THEME, code_format=SVG, unique_id="terminal")


def find_browser() -> str:
    """Return the path of Chromium.

    Raises:
        NodeError: there is none.
    """
    for path in map(shutil.which, BROWSERS):
        if path is not None:
            return path
    raise NodeError(
        f"expected one of {', '.join(BROWSERS)}, found none: {IMAGES / 'report.png'} stays as it was; "
        "install Chromium (`apt-get install chromium`) and run scripts/pictures again"
    )


def screenshot(browser: str, page: Path) -> bytes:
    """Return the parts of a report that EXTRACT leaves, as PNG."""
    page.write_text(page.read_text() + EXTRACT)
    options = ["--headless", "--hide-scrollbars", f"--user-data-dir={Path('browser').resolve()}"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's does not work for root
    options += [f"--window-size={WIDTH},4000", f"--screenshot={Path('report.png').resolve()}"]
    subprocess.run([browser, *options, page.resolve().as_uri()], check=True, capture_output=True, timeout=PATIENCE_S)
    return smaller(Image.open("report.png").convert("RGB"))


def smaller(picture: Image.Image) -> bytes:
    """Return a picture as PNG of 256 colours, without the empty part below."""
    background = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    shown = ImageChops.difference(picture, background).getbbox()
    assert shown is not None
    cut = picture.crop((0, 0, picture.width, min(shown[3] + MARGIN, picture.height)))
    written = io.BytesIO()
    cut.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        written, "PNG", optimize=True
    )
    return written.getvalue()


if __name__ == "__main__":
    try:
        main()
    except (ContrailsError, subprocess.CalledProcessError) as error:
        print(f"scripts/pictures: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, ContrailsError) else error.returncode)
