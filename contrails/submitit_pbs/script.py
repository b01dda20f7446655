"""The options and the script for qsub, from parameters. Every value is quoted; nothing here runs PBS commands."""

import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from contrails.errors import RecipeError, choices
from contrails.files import to_json

SPEC, STARTED = "SUBMITIT_PBS_SPEC", "SUBMITIT_PBS_STARTED"
COMMANDS = "SUBMITIT_PBS_COMMANDS"
FIRST_ID, LINK, MEM_MB = "SUBMITIT_PBS_FIRST_ID", "SUBMITIT_PBS_LINK", "SUBMITIT_PBS_MEM_MB"

AUTO, HELD, AT_WARNING, NONE = "auto", "held", "at_warning", "none"
BUDGETS = {"TIMEOUT": 3, "OUT_OF_MEMORY": 2, "NODE_FAIL": 3, "KILLED": 3, "LOST": 3}
"""By cause, how many failures without progress in between a chain retries before it gives up."""


@dataclass(frozen=True)
class Parameters:
    """Parameters of a job: submitit's own, then those with the prefix `pbs_`."""

    name: str = "submitit"
    timeout_min: float = 5
    mem_gb: float | None = None
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int = 1
    nodes: int = 1
    stderr_to_stdout: bool = False
    # -q, -A, -P
    queue: str | None = None
    account: str | None = None
    project: str | None = None
    walltime: str | None = None
    """HH:MM:SS instead of timeout_min."""
    gpu_mem: str | None = None
    gpu_cap: str | None = None
    scratch_local: str | None = None
    cluster: str | None = None
    resources: Mapping[str, str | int] = field(default_factory=dict)
    """More resources for -l select, under the site's names, such as {"gpu_model": "A40"}."""
    select: str | None = None
    """The whole value of -l select, instead of one made from the other parameters."""
    place: str | None = None
    setup: Sequence[str] = ()
    teardown: Sequence[str] = ()
    """Shell lines before and after the task; the teardown may change `$code`, the exit code of the task."""
    additional_parameters: Mapping[str, str] = field(default_factory=dict)
    """Other options of qsub, such as {"-M": "me@example.org"}."""
    after: Sequence[str] = ()
    """`<folder>/<job id>` of jobs of this executor that must have succeeded."""
    array_parallelism: int | None = None
    signal_delay_s: float = 90
    """Seconds before the walltime at which the task is told to save and leave; at most half of the walltime."""
    chain: str = AUTO
    """When the next link is submitted: held (at the start), at_warning, none; auto: held for callables with
    checkpoint(), else none."""
    max_links: int = 100
    budgets: Mapping[str, int] = field(default_factory=dict)
    """Changes to `BUDGETS`."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Parameters":
        """Return checked parameters.

        Raises:
            RecipeError: a parameter is unknown or has an invalid value.
        """
        known = {parameter.name for parameter in fields(cls)}
        for name in values:
            if name not in known:
                raise RecipeError(f"unknown parameter '{name}' of the executor 'pbs': {choices(name, known)}")
        parameters = cls(**values)
        parameters._check()
        return parameters

    @property
    def walltime_s(self) -> float:
        """The walltime in seconds."""
        return self.timeout_min * 60 if self.walltime is None else parse_walltime(self.walltime)

    def _check(self) -> None:
        if self.nodes != 1:
            raise RecipeError(
                f"nodes = {self.nodes}: the executor 'pbs' starts all tasks on one node; give nodes = 1, with "
                "tasks_per_node and gpus_per_node as needed"
            )
        if self.chain not in (AUTO, HELD, AT_WARNING, NONE):
            raise RecipeError(f"pbs_chain = '{self.chain}': {choices(self.chain, (AUTO, HELD, AT_WARNING, NONE))}")
        for cause in self.budgets:
            if cause not in BUDGETS:
                raise RecipeError(f"pbs_budgets: unknown cause '{cause}': {choices(cause, BUDGETS)}")
        for lines in (self.setup, self.teardown, self.after):
            if isinstance(lines, str):
                raise RecipeError(f"pbs_setup, pbs_teardown and pbs_after: expected a list of texts, found {lines!r}")
        if self.walltime_s <= 0:
            raise RecipeError(f"walltime: expected more than 0 s, found {self.walltime or self.timeout_min}")


@dataclass(frozen=True)
class Spec:
    """What a job was submitted with, so that it can submit the next link; stored as JSON in its script."""

    qsub: list[str]
    name: str
    walltime_s: float
    margin_s: float
    chain: str
    max_links: int
    budgets: dict[str, int]
    num_tasks: int
    stderr_to_stdout: bool
    teardown: list[str]
    after: list[str]


def spec_of(environment: Mapping[str, str]) -> Spec:
    """Return the spec of the job with this environment."""
    return Spec(**json.loads(environment[SPEC]))


def name_in(path: Path) -> str | None:
    """Return the name of the jobs of a script; None if the script does not have its final name yet.

    All links of a job have this name.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    said = next((line for line in lines if line.startswith(f"export {SPEC}=")), None)
    return None if said is None else str(json.loads(shlex.split(said)[1].partition("=")[2])["name"])


def make_spec(parameters: Parameters, folder: Path, chain: str) -> Spec:
    """Return the spec of jobs with these parameters."""
    name = job_name(parameters.name)
    optional = {"-q": parameters.queue, "-A": parameters.account, "-P": parameters.project}
    place = [] if parameters.place is None else ["-l", f"place={parameters.place}"]
    chosen: list[str] = []
    for option, value in optional.items():
        chosen += [option, value] if value is not None else []
    options = [
        *("-N", name),
        *chosen,
        *("-l", f"select={parameters.select or select(parameters)}"),
        *("-l", f"walltime={format_walltime(parameters.walltime_s)}"),
        *place,
        # rerunnable: PBS itself restarts a job that it preempted, or whose node failed
        *("-r", "y"),
        # one log, written as it grows, into the folder under the job's id; readable by its owner only
        *("-j", "oe", "-k", "oed", "-o", f"{folder}/", "-W", "umask=077"),
        *(word for pair in parameters.additional_parameters.items() for word in pair),
    ]
    return Spec(
        qsub=options,
        name=name,
        walltime_s=parameters.walltime_s,
        margin_s=min(parameters.signal_delay_s, parameters.walltime_s / 2),
        chain=chain,
        max_links=parameters.max_links,
        budgets=BUDGETS | dict(parameters.budgets),
        num_tasks=parameters.tasks_per_node,
        stderr_to_stdout=parameters.stderr_to_stdout,
        teardown=list(parameters.teardown),
        after=list(parameters.after),
    )


def render(spec: Spec, command: str, setup: Sequence[str]) -> str:
    """Return the script of a job; `command` and `setup` are shell code and not quoted.

    The values are part of the script, since `qsub -v` strips quotes and splits at commas, and `-V` makes qstat's JSON
    invalid.
    """
    lines = [
        "#!/bin/bash",
        f"export {STARTED}=$(date +%s)",
        f"export {SPEC}={shlex.quote(to_json(asdict(spec)))}",
        "export SUBMITIT_EXECUTOR=pbs",
        *_path_of_commands(),
        'cd "$PBS_O_WORKDIR"  # where it was submitted, as on Slurm; PBS starts jobs in the home folder',
        "trap : TERM  # PBS sends it to every process: the shell stays until the task has saved",
        *("", "# setup", *setup),
        *("", "# command", command),
    ]
    return "\n".join(lines) + "\n"


def _path_of_commands() -> list[str]:
    """Return the lines that add PBS's commands to the PATH: a job has the PATH of its node, not the submitter's.

    In a container, qsub may stand for that of the node, so the folder that the job was submitted with comes first.
    """
    qsub = shutil.which("qsub")
    folder = os.environ.get(COMMANDS) or (qsub and str(Path(qsub).parent))
    return [f"export {COMMANDS}={shlex.quote(folder)}", f'export PATH="$PATH":"${COMMANDS}"'] if folder else []


def select(parameters: Parameters) -> str:
    """Return the value of `-l select=`.

    >>> select(Parameters(cpus_per_task=4, mem_gb=16, gpus_per_node=1, gpu_mem="20gb"))
    '1:ncpus=4:mem=16384mb:ngpus=1:gpu_mem=20gb'
    """
    tasks = parameters.tasks_per_node
    values: dict[str, Any] = {
        "ncpus": parameters.cpus_per_task * tasks,
        "mpiprocs": tasks if tasks > 1 else None,
        "mem": None if parameters.mem_gb is None else f"{math.ceil(parameters.mem_gb * 1024)}mb",
        "ngpus": parameters.gpus_per_node or None,
        "gpu_mem": parameters.gpu_mem,
        "gpu_cap": parameters.gpu_cap,
        "scratch_local": parameters.scratch_local,
        "cluster": parameters.cluster,
        **parameters.resources,
    }
    return ":".join(["1", *(f"{key}={_quoted(value)}" for key, value in values.items() if value is not None)])


def select_of(options: Sequence[str]) -> dict[str, str]:
    """Return the resources that qsub's options request.

    >>> select_of(["-l", "select=1:ncpus=4:mem=1024mb"])
    {'ncpus': '4', 'mem': '1024mb'}
    """
    chunk = next((word.removeprefix("select=") for word in options if word.startswith("select=")), "")
    pairs = [part.partition("=") for part in chunk.split(":")]
    return {name: value for name, _, value in pairs if value}


def memory_mb(options: Sequence[str]) -> int | None:
    """Return the memory in MB that qsub's options request; None if select does not give it in megabytes."""
    found = re.search(_MEMORY, " ".join(options))
    return None if found is None else int(found.group(1))


def with_memory(options: Sequence[str], mem_mb: int) -> list[str]:
    """Return the options of qsub with another amount of memory.

    >>> with_memory(["-l", "select=1:ncpus=4:mem=1024mb:gpu_mem=20gb"], 1536)
    ['-l', 'select=1:ncpus=4:mem=1536mb:gpu_mem=20gb']
    """
    return [re.sub(_MEMORY, f":mem={mem_mb}mb", word) for word in options]


def with_resources(options: Sequence[str], more: Mapping[str, str]) -> list[str]:
    """Return the options of qsub with additional resources in the select.

    >>> with_resources(["-l", "select=1:ncpus=4"], {"cl_old": "False"})
    ['-l', 'select=1:ncpus=4:cl_old=False']
    """
    added = "".join(f":{name}={_quoted(value)}" for name, value in more.items())
    return [f"{word}{added}" if word.startswith("select=") else word for word in options]


_MEMORY = r":mem=(\d+)mb"


def with_variables(options: Sequence[str], values: str) -> list[str]:
    """Return the options of qsub with additional variables; of two options -v, qsub would take only the last.

    >>> with_variables(["-v", "A=1", "-m", "ae"], "B=2")
    ['-v', 'A=1,B=2', '-m', 'ae']
    """
    words = list(options)
    if "-v" not in words:
        return [*words, "-v", values]
    place = words.index("-v") + 1
    return [*words[:place], f"{words[place]},{values}", *words[place + 1 :]]


def job_name(name: str) -> str:
    """Return a valid PBS name: no blanks, no leading dot, 230 characters. Old servers cut names at 15 characters.

    >>> job_name("fold 3: first")
    'fold_3__first'
    """
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".")[:230] or "submitit"


def format_walltime(seconds: float) -> str:
    """Return a duration as HH:MM:SS.

    >>> format_walltime(86430)
    '24:00:30'
    """
    whole = math.ceil(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def parse_walltime(text: str) -> float:
    """Return the seconds of HH:MM:SS, MM:SS or seconds.

    Raises:
        RecipeError: the text has none of these forms.
    """
    if not re.fullmatch(r"(\d+:){0,2}\d+", text):
        raise RecipeError(f"walltime: expected HH:MM:SS, found '{text}'")
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def _quoted(value: object) -> str:
    """Return a value of select, quoted if it has a comma, which PBS would take as its end."""
    return f'"{value}"' if "," in str(value) else str(value)
