"""Weights & Biases as a sink; the only module that imports wandb.

Columns added by W&B begin with `_`. `step=` is never passed, since W&B drops a row whose step does not increase.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from contrails.errors import TrackingError
from contrails.tracking.account import Account
from contrails.tracking.server import Server
from contrails.tracking.sink import Experiment, GoneError, Outcome, Picture, References, Table

_EXIT = {"finished": 0, "failed": 1, "preempted": 75}
_SEND_EVERY_S = 5.0
_PATIENCE_S = 60.0
_DELETED = "previously created and deleted"
_HTTP_ERROR = re.compile(r'"status":(\d+),"method":"\w+","url":"[^"]*/([^"/?]+)[^"]*"')
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


class WandbSink:
    """A W&B run, on its server or as offline files that `wandb sync` sends."""

    def __init__(self, account: Account) -> None:
        self._account, self._server = account, Server(account, _PATIENCE_S)
        self._run: Any = None
        self._sent, self._artifacts = 0, list[str]()

    def open(self, experiment: Experiment) -> int:
        if self._account.online:
            self._look(experiment)
        with _explained():
            self._run = wandb.init(
                project=self._account.project,
                entity=self._account.entity,
                id=experiment.id,
                resume="allow",
                reinit="create_new",
                dir=str(experiment.folder),
                mode="online" if self._account.online else "offline",
                settings=_settings(),
                group=experiment.group,
                job_type=experiment.job_type,
                name=experiment.name,
                notes=experiment.notes or None,
                config=dict(experiment.config),
            )
            # when a run continues, W&B ignores the configuration given to init
            self._run.config.update(dict(experiment.config), allow_val_change=True)
        # run.step is 0 in a continued run until its first row
        self._sent = int(self._run.starting_step) if self._account.online else 0
        return self._sent

    def _look(self, experiment: Experiment) -> None:
        """Check for a deleted run, which wandb would retry for a minute."""
        entity = self._account.entity or self._server.default_entity()
        if self._server.rows(entity, self._account.project, experiment.id) is None and experiment.known:
            raise self._gone(experiment.id)

    def _gone(self, run_id: str) -> GoneError:
        return GoneError(f"the run {run_id} was deleted at {self._account.address}, which never accepts its id again")

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with _explained():
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
            for row in rows:
                self._run.log(dict(row))
        self._sent += len(rows)

    def media(self, name: str, media: Table | References) -> None:
        with _explained():
            if isinstance(media, References):
                artifact = wandb.Artifact(_NOT_IN_NAMES.sub("-", name), media.kind)
                self._artifacts.append(artifact.name)
                for path in media.files:
                    artifact.add_reference(path.absolute().as_uri(), name=path.name, checksum=False)
                self._run.log_artifact(artifact)
                return
            cells = [[_image(cell) if isinstance(cell, Picture) else cell for cell in row] for row in media.cells]
            self._run.log({name: wandb.Table(list(media.columns), cells)})
            self._artifacts.append(f"run-{self._run.id}-{name}")
        self._sent += 1

    def held(self) -> int:
        if not self._account.online:
            return self._sent
        rows = self._server.rows(self._run.entity, self._run.project, self._run.id)
        if rows is None:
            raise self._gone(self._run.id)
        return rows

    def finish(self, outcome: Outcome, summary: Mapping[str, float | str]) -> None:
        with _explained():
            self._run.summary.update(dict(summary))
            if outcome == "preempted":
                self._run.mark_preempting()  # with an exit code that is not 0, W&B shows the state "preempted"
            self._run.finish(exit_code=_EXIT[outcome])
        # wandb does not report artifacts that failed
        for name in self._artifacts if self._account.online else ():
            if not self._server.holds(self._run.entity, self._run.project, name):
                raise TrackingError(f"{self._account.address} does not hold the artifact {name}")

    @property
    def refusal(self) -> str | None:
        """The server's last answer to rows that it refused; wandb writes it to its own log only."""
        log = Path(self._run.dir).parent / "logs" / "debug-internal.log"
        found = None
        for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
            if answer := _HTTP_ERROR.search(line):
                found = f"{answer[1]} to {answer[2]}"
        return found

    @property
    def offline_folder(self) -> str | None:
        """Name of the folder of an offline run; None for an online run."""
        return None if self._account.online else Path(self._run.dir).parent.name


def _settings() -> "wandb.Settings":
    return wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_file_stream_transmit_interval=_SEND_EVERY_S,
    )


def _image(picture: Picture) -> "wandb.Image":
    masks = {name: {"mask_data": mask, "class_labels": {1: name}} for name, mask in picture.masks.items()}
    return wandb.Image(picture.pixels, masks=masks)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn all exceptions of wandb into `TrackingError`."""
    try:
        yield
    # a killed wandb-core raises ConnectionResetError; an invalid answer of the server raises ValueError
    except (wandb.Error, OSError, TimeoutError, ValueError) as error:
        kind = GoneError if _DELETED in str(error) else TrackingError
        said = (str(error).splitlines() or [""])[0]  # further lines advise settings that do not apply here
        raise kind(f"{type(error).__name__}: {said}") from error
