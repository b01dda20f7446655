"""Training of one fold, from its frozen configuration to `done.json`; each fold job runs this."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from contrails.draws import derived_seed
from contrails.errors import DataError, GpuMemoryError, NodeError, Stopped, TrainingError
from contrails.files import create_exclusive, sha256, to_json
from contrails.gpu import NO_KERNELS, driver_version, require_kernels, without_kernels
from contrails.inputs.sampling import Sampler
from contrails.models.build import build_model
from contrails.models.sizes import require_piece
from contrails.models.summary import summary
from contrails.models.weights import load_fitting, load_weights
from contrails.progress import tell
from contrails.runs.config import RunConfig, WeightsFile
from contrails.runs.folder import Attempt, Fold
from contrails.train.attempt import Heart, claim_attempt
from contrails.train.context import JobContext, RankContext
from contrails.train.fold_data import FoldData, open_data
from contrails.train.loop import Loop
from contrails.train.objective import Objective
from contrails.train.ranks.batch_norm import join_batch_norms
from contrails.train.ranks.group import Ranks, joined
from contrails.train.replay import explained
from contrails.train.saved.snapshot import load_snapshot, remove_leftovers
from contrails.train.saved.state import KeptWeights, TrainState, new_state
from contrails.train.saved.weights import WeightsFiles
from contrails.train.start import StartClock
from contrails.train.stop import StopFlag
from contrails.train.verification import Verification, distrust

log = logging.getLogger(__name__)

_NO_JOB = JobContext()


def train_fold(fold: Fold, job: JobContext = _NO_JOB) -> None:
    """Train a fold to its end, or until a signal stops it; a finished fold is left as it is.

    Args:
        fold: the fold to train, in a run folder with a frozen configuration.
        job: the job that this process runs in.

    Raises:
        Stopped: a signal came or the walltime ends; the position is saved, and the same call continues from it.
        RunError: another process trains this fold.
        ContrailsError: any other failure; the reason is written to the attempt's `state.json`.
    """
    if fold.done.exists():
        log.info("fold %s is finished: nothing to do", fold.key)
        return
    clock = StartClock(job.started_at, job.start_s)
    stop = StopFlag(job.clock)
    stop.install()
    config = fold.run.read_config()
    exactness = {"code": config.code, "recipe": config.digest, "num_nodes": job.num_nodes}
    exactness |= _gpu(config) | config.compute.model_dump()
    attempt = claim_attempt(fold, job, exactness, lambda: not stop.asked())
    if job.redirect:
        _redirect(attempt)
    clock.skip()
    heart = Heart(fold, attempt, clock)
    heart.start()
    try:
        _train_attempt(fold, attempt, config, heart, stop, job)
    except Stopped as error:
        heart.stop(status="stopped", reason=str(error), asked_by=stop.reason)
        raise
    except BaseException as error:
        heart.stop(status="failed", reason=f"{type(error).__name__}: {error}")
        raise
    heart.stop(status="done")
    _say_done(fold)


def train_rank(fold: Fold, rank: RankContext) -> None:
    """Train as a rank other than 0; rank 0 has claimed the attempt and writes all files."""
    stop = StopFlag(rank.job.clock)
    stop.install()
    with contextlib.suppress(Stopped):  # rank 0 reports the stop
        _train_attempt(fold, fold.attempt(rank.attempt), fold.run.read_config(), None, stop, rank.job, rank)


def _train_attempt(
    fold: Fold,
    attempt: Attempt,
    config: RunConfig,
    heart: Heart | None,
    stop: StopFlag,
    job: JobContext,
    rank: RankContext | None = None,
) -> None:
    """Train as rank 0, which also writes `state.json` (with `heart`) and `done.json`, or as another rank."""
    if heart is not None:
        remove_leftovers(fold)
        distrust(fold)
    num_ranks = config.compute.num_ranks
    device = _prepare_torch(config, 0 if rank is None else rank.number % job.ranks_per_node(num_ranks))
    # a stop of another rank is agreed on after the first step
    poll = partial(_poll, fold, stop, "while its ranks were started") if rank is None else lambda: None
    of_ranks = joined(fold, attempt, job, rank, num_ranks, config.compute.device, poll)
    with _explaining(fold, device), of_ranks as ranks:
        loop = _build(fold, attempt, config, heart, stop, job, ranks, device)
        with explained(loop):
            loop.run()
            if ranks.first:
                averages = loop.averaged_weights()
                loop.require_intact()
                _write_done(fold, attempt, loop.state, averages)


def _build(
    fold: Fold,
    attempt: Attempt,
    config: RunConfig,
    heart: Heart | None,
    stop: StopFlag,
    job: JobContext,
    ranks: Ranks,
    device: torch.device,
) -> Loop:
    """Open the data, build the model and restore the newest snapshot."""
    recipe = config.recipe
    data = open_data(fold, config, job, device, partial(_poll, fold, stop, "while its data were copied"))
    if heart is not None:
        heart.passed("staging", data.staging_s)
    dataset, training, source = data.dataset, data.training, data.source
    sampler = Sampler(source.dataset, recipe, data.drawn, fold.key)
    height, width = dataset.votes.shape[1:]
    require_piece(recipe, height, width, ranks.count, sampler.smallest_step())

    def rebuild() -> TrainState:
        # Order matters. The seed comes first, because building the model draws from it. The snapshot is read before the
        # model is built: a resumed fold needs no pretrained file, which may no longer exist. Weights of another run and
        # the head bias are initial weights; they are set only without a snapshot, which would overwrite them.
        torch.manual_seed(derived_seed(recipe.seed, "init", fold.key))
        found = load_snapshot(fold)
        pretrained = None if config.pretrained is None or found is not None else _verified(config.pretrained)
        model = build_model(recipe, source.num_channels, source.label_position, pretrained).to(device)
        if recipe.train.sync_batch_norm and ranks.count > 1:
            join_batch_norms(model)
        if recipe.train.channels_last:
            model.channels_last()
        objective = Objective(recipe, lambda: dataset.positive_rate(training)).to(device)
        state = new_state(model, objective, recipe.train, device)
        if found is not None:
            name, content = found
            state.load_state_dict(content)
            log.info("resuming at step %d from %s", state.step, name.path.name)
        elif (parent := config.lineage.get(fold.key)) is not None:
            _start_from(_verified(parent), model)
        elif recipe.model.head_bias == "rate":
            positive = dataset.positive_pixels(training) > 0
            model.model.start_at(dataset.positive_rate(training), float(positive.mean()))
        model.train()
        return state

    state = rebuild()
    if job.summary:
        size = (recipe.data.crop,) * 2 if recipe.data.crop else dataset.bands.shape[-2:]
        frames = (len(source.frames),) if source.time_axis else ()
        shape = (sampler.batch_size, *frames, source.num_channels, *size)
        tell(f"{summary(state.model, shape)}\ninput {shape} -> output {(shape[0], *size)}")
    origin = {"data": config.data.model_dump(mode="json"), "code": config.code}
    return Loop(
        fold=fold,
        attempt=attempt,
        recipe=recipe,
        source=source,
        sampler=sampler,
        training_rows=training,
        validation_rows=data.validation,
        state=state,
        heart=heart,
        stop=stop,
        rebuild=rebuild,
        ranks=ranks,
        weights=WeightsFiles(fold, attempt.number, recipe, source, origin),
        verification=_verify(fold, attempt, config, data, job) if ranks.first else None,
    )


def _verify(fold: Fold, attempt: Attempt, config: RunConfig, data: FoldData, job: JobContext) -> Verification:
    """Start to verify the data in the background."""
    return Verification(fold, attempt, data.start_check(fold, config.data.num_folds, job.verified_fd))


@contextmanager
def _explaining(fold: Fold, device: torch.device) -> Iterator[None]:
    """Turn errors of torch into errors that say what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(
            f"fold {fold.key}: expected a model and batch that fit in the GPU's memory: {error}; raise "
            "train.accumulate, set train.precision to 'bf16', or lower train.batch_size or data.size"
        ) from error
    except RuntimeError as error:
        if NO_KERNELS in str(error):
            raise without_kernels(device) from error
        if "deterministic" not in str(error):
            raise
        raise TrainingError(
            f"fold {fold.key}: expected deterministic kernels, found one without a deterministic version: {error}; set "
            "train.deterministic=false (results are then not byte-identical), or choose another model"
        ) from error


def _verified(weights: WeightsFile) -> Path:
    """Return the path of a weights file after a check that it has not changed since the run was created."""
    if not weights.path.is_file() or sha256(weights.path) != weights.sha256:
        raise DataError(
            f"{weights.path}, from which this fold starts, is missing or has changed since the run was made; put it "
            "back (`contrails weights fetch ENCODER` downloads pretrained weights, with internet access), or make a "
            "new run"
        )
    return weights.path


def _start_from(path: Path, model: nn.Module) -> None:
    """Load the tensors of another run's weights that fit, and log the names of the others."""
    fitting = load_fitting(model, load_weights(path)[0])
    if not fitting.loaded:
        raise TrainingError(
            f"{path}: expected weights that fit this model, found no tensor that does; use the model of the run that "
            "made them"
        )
    log.info("starting from %s: %s", path, fitting)


def _gpu(config: RunConfig) -> dict[str, str | None]:
    """Return the GPU with the CUDA version of torch, and the driver version if it is known.

    Without a known version the key is left out, as in the records of older versions.
    """
    if config.compute.device != "cuda" or not torch.cuda.is_available():
        return {"gpu": None}
    driver = driver_version()
    found: dict[str, str | None] = {"gpu": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"}
    return found if driver is None else found | {"driver": driver}


def _poll(fold: Fold, stop: StopFlag, when: str) -> None:
    if stop.asked():
        raise Stopped(f"fold {fold.key} stopped {when}, before its first step ({stop.reason})")


def _prepare_torch(config: RunConfig, local_rank: int) -> torch.device:
    torch.set_num_threads(config.compute.num_threads)
    if config.recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise NodeError("expected a GPU, torch finds none on this node; the same job can succeed on another node")
    if config.compute.device != "cuda":
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    require_kernels(device)
    torch.cuda.set_device(device)  # streams, NCCL and memory statistics use the current device if none is given
    return device


def _write_done(fold: Fold, attempt: Attempt, state: TrainState, averages: dict[str, KeptWeights]) -> None:
    """Create `done.json` unless another process already has; its results are then byte-identical to these."""
    best, final = state.best, state.kept[-1]
    weights = {"final": final} | ({"best": best} if best else {}) | averages
    content = {
        "attempt": attempt.number,
        "step": state.step,
        "epoch": state.epoch,
        "best_dice": best.dice if best else None,
        "best_threshold": best.threshold if best else None,
        "weights": {name: vars(kept) for name, kept in weights.items()},
    }
    create_exclusive(fold.done, to_json(content))


def _say_done(fold: Fold) -> None:
    done = fold.read_done()
    assert done is not None
    best = done["weights"].get("best")
    score = f"best Dice {best['dice']:.4f} in epoch {best['epoch']}; " if best else ""
    log.info("fold %s is finished after step %d: %sweights in %s", fold.key, done["step"], score, fold.weights)


def _redirect(attempt: Attempt) -> None:
    """Redirect stdout and stderr of this process to the attempt's logs, for libraries in C too."""
    for path, stream in ((attempt.stdout, sys.stdout), (attempt.stderr, sys.stderr)):
        stream.flush()
        with Path.open(path, "ab") as file:
            os.dup2(file.fileno(), stream.fileno())
