"""Requests to a W&B server without wandb: the key's entity, the number of rows of a run, the state of artifacts.

They are needed since wandb reports success even if the server refuses what it sent.
"""

import base64
import json
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from contrails.errors import TrackingError
from contrails.tracking.account import Account, require_address

_TIMEOUT_S = 10.0
_PAUSE_S = 2.0
_PASSES = {429, 500, 502, 503, 504}
_VIEWER = "query Viewer { viewer { id entity username } }"
_ROWS = """query RunRows($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyLineCount } } }"""
_FILES = """query ArtifactState($project: String, $entity: String, $name: String!) {
  project(name: $project, entityName: $entity) { artifact(name: $name) { state } } }"""


class Server:
    """The W&B server of an account; requests are retried for `patience_s` while it is busy or fails."""

    def __init__(self, account: Account, patience_s: float = 0.0) -> None:
        self._account, self._patience_s = account, patience_s

    def default_entity(self) -> str:
        """Return the entity that is used if none is set.

        Raises:
            TrackingError: the server does not answer, or refuses the key.
        """
        viewer = self._ask(_VIEWER, {}).get("viewer")
        if not viewer:
            raise TrackingError(f"{self._refused()} (it knows no such user); {self._login()}")
        return str(viewer.get("entity") or viewer.get("username"))

    def rows(self, entity: str, project: str, run_id: str) -> int | None:
        """Return the number of rows of a run; None if there is no such run.

        Raises:
            TrackingError: the server does not answer, or refuses.
        """
        model = self._ask(_ROWS, {"project": project, "entity": entity, "name": run_id}).get("model") or {}
        bucket = model.get("bucket")
        return None if bucket is None else int(bucket["historyLineCount"] or 0)

    def holds(self, entity: str, project: str, artifact: str) -> bool:
        """Return whether the newest version of an artifact is complete.

        Raises:
            TrackingError: the server does not answer, or refuses.
        """
        variables = {"project": project, "entity": entity, "name": f"{artifact}:latest"}
        found = (self._ask(_FILES, variables).get("project") or {}).get("artifact") or {}
        return bool(found.get("state") == "COMMITTED")

    def _ask(self, query: str, variables: dict[str, str]) -> dict[str, Any]:
        account = self._account
        key = base64.b64encode(f"api:{account.key}".encode()).decode()
        require_address(account.address)
        request = urllib.request.Request(  # noqa: S310 - http or https
            f"{account.address}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {key}"},
        )
        try:
            content = self._patiently(request)
            if content.get("errors"):
                raise TrackingError(f"{account.address} answers: {_message(content)}")
            return dict(content["data"])
        except urllib.error.HTTPError as error:
            with error:
                raise TrackingError(self._explain(error)) from error
        except (OSError, HTTPException) as error:  # OSError includes URLError and timeouts
            reason = getattr(error, "reason", None) or error
            raise TrackingError(f"{account.address} does not answer ({reason}); check the network") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrackingError(f"{account.address} does not answer as a W&B server; check WANDB_BASE_URL") from error

    def _patiently(self, request: urllib.request.Request) -> Any:
        end = time.monotonic() + self._patience_s
        while True:
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                asked = error.headers.get("Retry-After") or ""
                pause = float(asked) if asked.isdecimal() else _PAUSE_S
                if error.code not in _PASSES or time.monotonic() + pause > end:
                    raise
                error.close()
            time.sleep(pause)

    def _explain(self, error: urllib.error.HTTPError) -> str:
        if error.code == 401:
            return f"{self._refused()} (401); {self._login()}"
        if error.code == 403:
            return f"{self._refused()} (403); check that it may write there: WANDB_ENTITY, WANDB_PROJECT"
        try:
            said = f": {_message(json.load(error))}"
        except (OSError, ValueError, AttributeError):
            said = ""
        return f"{self._account.address} answers {error.code} ({error.reason}){said}"

    def _refused(self) -> str:
        return f"{self._account.address} refuses the key from {self._account.source}"

    def _login(self) -> str:
        return f"make a new one with `wandb login --relogin --host {self._account.address}`"


def _message(content: dict[str, Any]) -> str:
    return "; ".join(str(each.get("message", each)) for each in content.get("errors") or ()) or "nothing"
