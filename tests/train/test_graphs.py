"""Training by CUDA graphs, on a CPU that records operations in their place: the same bits, also after a resume."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRecipe, MakeRun
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contrails.cluster.check.drill import result_of
from contrails.cluster.schedulers.sites import Site
from contrails.cluster.submit.create import plan_run
from contrails.errors import RecipeError, Stopped, TrainingError
from contrails.models.outputs import Outputs
from contrails.models.weights import load_weights
from contrails.runs.folder import Run
from contrails.train.fold import train_fold
from contrails.train.graphs import GraphedForward
from contrails.train.loop import Loop

Operation = tuple[Any, Sequence[Any], dict[str, Any], list[torch.Tensor]]


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In place of a CUDA graph: it records operations, and repeats them on the same tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.num_replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, _tensors(result)))
        return result

    def pool(self) -> None:
        """Return no memory of its own."""

    @torch.no_grad()
    def replay(self) -> None:
        self.num_replays += 1
        for func, args, kwargs, results in self.operations:
            for own, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                if own.data_ptr() != new.data_ptr():  # else it is a view, or was changed in place
                    own.copy_(new)


def _tensors(content: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(content) if isinstance(value, torch.Tensor)]


class Stream:
    def wait_stream(self, _: object) -> None:
        """Return: there is one stream."""


@contextmanager
def recording(tape: Tape, **options: Any) -> Iterator[None]:
    assert options["capture_error_mode"] == "thread_local"
    with tape:
        yield


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Let the CPU take part as a GPU; return the graphs that are made."""
    made: list[Tape] = []

    def new() -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr("torch.cuda.CUDAGraph", new)
    monkeypatch.setattr("torch.cuda.graph", recording)
    monkeypatch.setattr("torch.cuda.Stream", lambda _device: Stream())
    monkeypatch.setattr("torch.cuda.current_stream", lambda _device: Stream())
    monkeypatch.setattr("torch.cuda.stream", lambda _stream: nullcontext())
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda _device: torch.get_rng_state())
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, _device: torch.set_rng_state(state))
    return made


MODEL = {"head_dropout": 0.3, "classifier": True, "heads": 2}
TRAIN = {"epochs": 2, "batch_size": 3, "drop_last": False, "ema_decay": 0.9, "precision": "bf16", "log_every": 1}


@pytest.mark.usefixtures("restore_process")
def test_a_fold_is_that_without_graphs_and_resumes(
    make_run: MakeRun, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, graphed, stopped = (
        make_run(name, model=MODEL, train=TRAIN | {"cuda_graph": name != "plain"})
        for name in ("plain", "graphed", "stopped")
    )
    train_fold(plain.fold("0"))
    assert not tapes
    train_fold(graphed.fold("0"))
    replays = [tape.num_replays for tape in tapes]
    assert replays == [1 + 4] * 2  # the check, and all batches but the smaller last one of each epoch
    assert _results(graphed) == _results(plain)
    _stop_after(stopped, 1, monkeypatch)
    train_fold(stopped.fold("0"))
    assert len(tapes) == 6
    assert _results(stopped) == _results(plain)


def _results(run: Run) -> Any:
    """Return what a fold has made; the files of its weights also hold the recipe, which says how it was trained."""
    fold, found = run.fold("0"), result_of(run.fold("0"))
    done = fold.read_done()
    assert done is not None
    tensors = {
        (kind, name): tensor.tolist()
        for kind, entry in done["weights"].items()
        for name, tensor in load_weights(fold.weights / entry["file"])[0].items()
    }
    return found["rows"], found["step"], tensors


def _stop_after(run: Run, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop._step

    def stopping(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        if loop.state.step == step:
            loop.stop.reason = "the test"

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", stopping)
        with pytest.raises(Stopped):
            train_fold(run.fold("0"))


class Counted(nn.Module):
    """Another product in every call, which a graph cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.unused = (nn.Parameter(torch.ones(3)) for _ in range(2))
        self.calls, self.counts = 0, True

    def forward(self, inputs: torch.Tensor) -> Outputs:
        self.calls += self.counts
        return Outputs(inputs * self.weight * self.calls)


@pytest.mark.usefixtures("tapes", "restore_process")
def test_other_bits_are_an_error_where_bits_matter() -> None:
    model = Counted()
    GraphedForward(model, model, 2)(torch.ones(2, 3))
    torch.use_deterministic_algorithms(True)
    with pytest.raises(TrainingError, match=r"same bits with CUDA graphs as without, found others; set train.cuda_gra"):
        GraphedForward(model, model, 2)(torch.ones(2, 3))


def test_a_batch_of_another_size_and_an_unused_parameter_are_as_without_graphs(tapes: list[Tape]) -> None:
    model = Counted()
    model.calls, model.counts = 1, False
    graphed, inputs = GraphedForward(model, model, 2), torch.arange(6.0).view(2, 3)
    for batch in (inputs, inputs[:1], inputs + 1):
        model.zero_grad()
        graphed(batch).mask.square().sum().backward()  # type: ignore[no-untyped-call]
        assert model.weight.grad is not None
        assert torch.equal(model.weight.grad, 2 * batch.square().sum(0))
        assert model.unused.grad is None
    assert [tape.num_replays for tape in tapes] == [2, 2]  # torch.use_deterministic_algorithms is off: no check


@pytest.mark.usefixtures("tapes")
def test_a_model_that_waits_for_the_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refusing(*_: Any, **__: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("torch.cuda.graph", refusing)
    model = Counted()
    with pytest.raises(TrainingError, match=r"a model that a CUDA graph can hold: operation not permitted .*; set tra"):
        GraphedForward(model, model, 2)(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("train", "found"),
    [
        ({"compile": True}, "compile = True"),
        ({"accumulate": 2, "freeze": {"encoder": 1}}, r"accumulate = 2, freeze = \{'encoder': 1\}"),
    ],
)
def test_what_a_graph_cannot_do_is_refused(recipe_with: MakeRecipe, train: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=rf"expected compile = false, accumulate = 1 and no freeze, found {found}; ch"):
        recipe_with(train={"cuda_graph": True} | train)


@pytest.mark.parametrize(("device", "num_ranks"), [("cpu", 1), ("cuda", 2)])
def test_a_site_without_one_gpu_is_refused(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, num_ranks: int
) -> None:
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path / "runs"))
    recipe = make_run(train={"cuda_graph": True, "batch_size": 4}).read_config().recipe
    site = Site(name="here", scheduler="slurm", device=device, num_ranks=num_ranks, num_gpus=2)
    with pytest.raises(RecipeError, match=rf"found device = '{device}' and num_ranks = {num_ranks} at here; choose an"):
        plan_run(recipe, site, "new")
