"""Pretrained weights: from a folder that a login node fills, adapted to the channels that there are."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from contrails.errors import DataError
from contrails.models.build import build_model
from contrails.models.library import smp, timm
from contrails.models.pretrained import find_pretrained, weights_path
from contrails.recipe.recipe import Recipe


def recipe(**model: Any) -> Recipe:
    return Recipe.model_validate({"data": {"dataset": "d", "filelist": "f"}, "model": model})


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    """A server that answers every request as the hub does, with one file."""
    torch.manual_seed(7)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w")
    content = (tmp_path / "w").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            found = self.path == "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
            self.send_response(200 if found else 404)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", content
    server.shutdown()
    server.server_close()


def contrails(folder: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "CONTRAILS_WEIGHTS": str(folder),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
    }
    command = [sys.executable, "-m", "contrails", "weights", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_fetched_weights_are_found_and_what_is_missing_says_what_to_run(
    tmp_path: Path, hub: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (endpoint, content) = tmp_path / "weights", hub
    monkeypatch.setenv("CONTRAILS_WEIGHTS", str(folder))
    asked = recipe(encoder="tu-test_resnet", pretrained="default")
    with pytest.raises(DataError, match=r"no such file; run `contrails weights fetch tu-test_resnet` on"):
        find_pretrained(asked)
    done = contrails(folder, endpoint, "fetch", "tu-test_resnet")
    assert done.returncode == 0, done.stderr
    found = find_pretrained(asked)
    assert found is not None
    assert (found.path, found.sha256) == (
        folder / "tu-test_resnet.r160_in1k.safetensors",
        hashlib.sha256(content).hexdigest(),
    )
    assert found.sha256 in contrails(folder, endpoint, "list").stdout
    refused = contrails(folder, endpoint, "fetch", "tu-test_vit")
    assert refused.returncode == 4
    assert "expected its weights at timm/test_vit.r160_in1k of the Hugging Face hub" in refused.stderr
    assert [path.name for path in folder.glob("*.safetensors")] == [found.path.name]
    assert "did you mean 'r160_in1k'" in contrails(folder, endpoint, "fetch", "tu-test_resnet", "--set", "r160").stderr


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet"])
def test_weights_of_a_file_are_those_of_the_encoder(tmp_path: Path, encoder: str, channels: int) -> None:
    torch.manual_seed(7)
    made = (
        timm.create_model("test_resnet")
        if encoder.startswith("tu-")
        else smp.encoders.get_encoder(encoder, weights=None)
    )
    path = tmp_path / "w.safetensors"
    save_file(made.state_dict(), path)
    asked = recipe(encoder=encoder, pretrained=str(path))
    weights = find_pretrained(asked)
    assert weights is not None
    found = build_model(asked, channels, pretrained=weights.path).model.encoder.state_dict()
    given = {name: tensor for name, tensor in made.state_dict().items() if not name.startswith("fc.")}
    first = next(iter(given))
    for name, tensor in given.items():
        ours = found["model." + name if encoder.startswith("tu-") else name]
        if name != first or channels == 3:
            assert torch.equal(ours, tensor), name


def test_a_name_of_the_cache_is_that_of_encoder_and_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAILS_WEIGHTS", "/w")
    assert weights_path("resnet18", "ssl") == Path("/w/resnet18.ssl.safetensors")
    assert weights_path("tu-resnet18.a2_in1k", "default") == Path("/w/tu-resnet18.a2_in1k.safetensors")
