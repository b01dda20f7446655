"""Answers to the GraphQL operations that wandb-core sends."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from wandb_server.held import HISTORY, Artifact, Held, StoredRun

Variables = dict[str, Any]
ENTITY = "somebody"


class Refused(Exception):
    """An answer with a status of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Answers:
    """One method an operation; `url` is where uploads go."""

    def __init__(self, held: Held, url: Callable[[], str]) -> None:
        self.held, self._url = held, url

    def answer(self, name: str, query: str, variables: Variables) -> dict[str, Any]:
        method = getattr(self, f"_{re.sub(r'(?<!^)(?=[A-Z])', '_', name).lower()}", None)
        if method is None:
            raise Refused(400, f"this server knows no operation {name}: {query[:200]}")
        with self.held.lock:
            data: dict[str, Any] = method(variables)
        return data

    def _viewer(self, _: Variables) -> dict[str, Any]:
        node = {"id": "VXNlcjox", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": node | {"admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []}}}

    def _server_features_query(self, _: Variables) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _server_info(self, _: Variables) -> dict[str, Any]:
        version = {"max_cli_version": "1.0.0", "min_cli_version": "0.10.0"}
        return {"serverInfo": {"cliVersionInfo": version, "latestLocalVersionInfo": None, "features": []}}

    def _x_x_hash_digests_enabled(self, _: Variables) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _artifact_type(self, sent: Variables) -> dict[str, Any]:
        name = str(sent["name"]).partition(":")[0]
        kinds = [each.kind for each in self.held.artifacts.values() if each.name == name]
        return {"project": {"artifact": {"artifactType": {"name": kinds[0]}} if kinds else None}}

    def _artifact_by_i_d(self, sent: Variables) -> dict[str, Any]:
        artifact = self.held.artifacts[sent["id"]]
        project = {"name": self.held.runs[artifact.run].project, "entity": _ENTITY}
        known = {
            "__typename": "Artifact",
            "id": sent["id"],
            "artifactSequence": {"__typename": "ArtifactSequence", "name": artifact.name, "project": project},
            "artifactType": {"name": artifact.kind},
            "state": artifact.state,
            "digest": artifact.digest,
            "createdAt": "2026-01-01T00:00:00Z",
        }
        none = ("description", "metadata", "historyStep", "commitHash", "ttlDurationSeconds", "updatedAt")
        rest = {"versionIndex": 0, "size": 0, "fileCount": 0, "ttlIsInherited": False, "tags": [], "aliases": []}
        return {"artifact": known | rest | dict.fromkeys(none)}

    def _fetch_artifact_manifest(self, sent: Variables) -> dict[str, Any]:
        file = {"directUrl": f"{self._url()}/upload/manifest/{sent['id']}"}
        return {"artifact": {"currentManifest": {"id": sent["id"], "file": file}}}

    def _artifact_state(self, sent: Variables) -> dict[str, Any]:
        name = str(sent["name"]).partition(":")[0]
        states = [each.state for each in self.held.artifacts.values() if each.name == name]
        return {"project": {"artifact": {"state": states[-1]} if states else None}}

    def _fetch_artifact_digest_algorithm(self, _: Variables) -> dict[str, Any]:
        return {"project": None}

    def _fetch_org_entity_from_entity(self, _: Variables) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def _input_fields(self, _: Variables) -> dict[str, Any]:
        return {"TypeInfo": {"inputFields": []}}

    def _type_fields(self, _: Variables) -> dict[str, Any]:
        return {"TypeInfo": {"fields": []}}

    def _type_info(self, _: Variables) -> dict[str, Any]:
        return {"__type": None}

    def _probe_server_capabilities(self, _: Variables) -> dict[str, Any]:
        return {name: {"fields": []} for name in ("QueryType", "MutationType", "ServerInfoType")}

    def _run_resume_status(self, sent: Variables) -> dict[str, Any]:
        run = self.held.runs.get(sent["name"])
        return {"model": {"id": "p", "name": sent["project"], "entity": _ENTITY, "bucket": run and self._bucket(run)}}

    def _run_rows(self, sent: Variables) -> dict[str, Any]:
        return self._run_resume_status(sent)

    def _run_stopped_status(self, _: Variables) -> dict[str, Any]:
        return {"project": {"run": {"stopped": False}}}

    def _upsert_bucket(self, sent: Variables) -> dict[str, Any]:
        name = sent.get("name") or sent["id"]
        if name in self.held.deleted:
            raise Refused(409, f"run {ENTITY}/{name} was previously created and deleted; try a new run name")
        run, inserted = self.held.runs.get(name), False
        if run is None:
            run, inserted = StoredRun(name, sent["project"], sent.get("entity") or ENTITY), True
            self.held.runs[name] = run
        run.fields |= {key: value for key, value in sent.items() if value is not None}
        if sent.get("config"):
            run.config = json.loads(sent["config"])
            run.first_config = run.first_config or run.config
        if sent.get("summaryMetrics"):
            run.lines.setdefault("wandb-summary.json", [sent["summaryMetrics"]])
        if sent.get("id"):  # another process goes on with it
            run.preempting = False
        run.become(sent.get("state") or "running")
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def _bucket(self, run: StoredRun) -> dict[str, Any]:
        return {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.fields.get("displayName"),
            "description": None,
            "sweepName": None,
            "project": {"id": "p", "name": run.project, "entity": _ENTITY},
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": run.count(HISTORY),
            "eventsLineCount": run.count("wandb-events.jsonl"),
            "logLineCount": run.count("output.log"),
            "historyTail": run.tail(HISTORY),
            "eventsTail": run.tail("wandb-events.jsonl"),
            "config": json.dumps(run.config),
            "tags": [],
            "notes": run.fields.get("notes"),
            "group": run.fields.get("groupName"),
            "jobType": run.fields.get("jobType"),
            "wandbConfig": json.dumps({"t": 1}),
            "state": run.state,
        }

    def _create_run_files(self, sent: Variables) -> dict[str, Any]:
        run = self.held.runs[sent["run"]]
        run.files += sent["files"]
        files = [{"name": name, "uploadUrl": f"{self._url()}/upload/{run.name}/{name}"} for name in sent["files"]]
        return {"createRunFiles": {"runID": f"id-{run.name}", "uploadHeaders": [], "files": files}}

    def _mark_run_files_uploaded(self, _: Variables) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    def _create_artifact(self, sent: Variables) -> dict[str, Any]:
        given = sent.get("input", sent)
        name = given.get("artifactCollectionName") or given["artifactCollectionNames"][0]
        run, digest = given.get("runName") or "", given["digest"]
        key = hashlib.sha256(f"{name} {digest}".encode()).hexdigest()[:12]
        self.held.artifacts.setdefault(key, Artifact(name, given["artifactTypeName"], run, digest))
        return {"createArtifact": {"artifact": {"id": key, "state": self.held.artifacts[key].state} | _SEQUENCE}}

    def _create_artifact_manifest(self, sent: Variables) -> dict[str, Any]:
        url = f"{self._url()}/upload/manifest/{sent['artifactID']}"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": sent["artifactID"], "file": file}}}

    def _update_artifact_manifest(self, sent: Variables) -> dict[str, Any]:
        made = self._create_artifact_manifest({"artifactID": sent["artifactManifestID"]})
        return {"updateArtifactManifest": made["createArtifactManifest"]}

    def _create_artifact_files(self, sent: Variables) -> dict[str, Any]:
        files = sent.get("input", sent)["artifactFiles"]
        nodes = [
            {
                "id": each["name"],
                "name": each["name"],
                "displayName": each["name"],
                "storagePath": each["name"],
                "uploadUrl": f"{self._url()}/upload/artifact/{each['artifactID']}/{each['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": each["artifactID"]},
            }
            for each in files
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _commit_artifact(self, sent: Variables) -> dict[str, Any]:
        artifact = self.held.artifacts[sent["artifactID"]]
        artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": sent["artifactID"], "digest": artifact.digest}}}

    def _use_artifact(self, sent: Variables) -> dict[str, Any]:
        return {"useArtifact": {"artifact": {"id": sent.get("input", sent)["artifactID"]}}}

    def _client_i_d_mapping(self, _: Variables) -> dict[str, Any]:
        return {"clientIDMapping": None}

    def _org_feature_flags(self, _: Variables) -> dict[str, Any]:
        return {"organization": None}


_ENTITY = {"id": "e", "name": ENTITY}
_SEQUENCE = {"artifactSequence": {"id": "s", "latestArtifact": None}, "versionIndex": 0}


def key_of(authorization: str) -> str:
    """Return the key in a header of basic authorization."""
    return base64.b64decode(authorization.removeprefix("Basic ") or b"").decode().partition(":")[2]
