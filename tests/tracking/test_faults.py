"""A W&B server that fails: no row is lost or doubled, and the user is told."""

import re

import psutil
import pytest
from fault_cases import QUICK, FaultCase, end
from killed import SOME_STAGES, SYNC_STAGES, sync_killed
from wandb_server import WandbServer

from contrails.errors import TrackingError
from contrails.files import read_json, to_json, write_atomic
from contrails.runs.folder import Fold
from contrails.runs.metrics import fold_metrics
from contrails.tracking.projection import sync_fold

pytestmark = pytest.mark.usefixtures("restore_process")


def holds_all(server: WandbServer, fold: Fold) -> bool:
    """Whether the server holds one run with the rows of a fold, each once, and how it ended."""
    (run,) = server.held.runs.values()
    return run.rows == fold_metrics(fold) and run.state == "finished" and not server.held.wrong


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_what_the_server_did_wrong_is_said_and_made_good(trained: Fold, server: WandbServer, case: FaultCase) -> None:
    case.begin(server)
    if case.told is None:
        assert sync_fold(trained) == 6
    else:
        with pytest.raises(TrackingError, match=f"W&B: .*{case.told}.*then run the same command again"):
            sync_fold(trained)
    assert sum(len(run.rows) for run in server.held.runs.values()) == case.held
    end(server)
    assert sync_fold(trained) == (0 if case.told is None else 6)
    assert holds_all(server, trained)


@pytest.mark.parametrize("stage", SOME_STAGES)
def test_killed_at_any_stage_nothing_is_lost_or_doubled(trained: Fold, server: WandbServer, stage: str) -> None:
    write_atomic(trained.wandb, to_json({"id": "0123abcd"}))
    done = sync_killed(trained, stage)
    assert done.returncode == (-9 if stage in SYNC_STAGES else 10), done.stderr
    assert stage in SYNC_STAGES or re.search("W&B: .*then run the same command again", done.stderr)
    assert sync_fold(trained) == 6
    assert holds_all(server, trained)
    assert read_json(trained.wandb)["id"] == "0123abcd"
    # a worker of the killed command that is still at work could overwrite the state
    assert not [each for each in psutil.process_iter(["cmdline"]) if stage in (each.info["cmdline"] or ())]


def test_a_run_deleted_on_the_server(trained: Fold, server: WandbServer) -> None:
    done = trained.done.read_text()
    trained.done.unlink()
    sync_fold(trained)
    old = read_json(trained.wandb)["id"]
    server.held.delete(old)
    trained.done.write_text(done)
    with pytest.raises(
        TrackingError, match=r"was deleted at .* never accepts its id again; .*`contrails sync .* --fold 0 --rebuild`"
    ):
        sync_fold(trained)
    assert sync_fold(trained, rebuild=True) == 6
    assert holds_all(server, trained)
    assert list(server.held.runs) == [read_json(trained.wandb)["id"]] != [old]


def test_a_run_that_was_deleted_before_its_first_row(trained: Fold, server: WandbServer) -> None:
    write_atomic(trained.wandb, to_json({"id": "0123abcd"}))
    server.held.deleted.add("0123abcd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_INIT_TIMEOUT", "3")  # for so long, wandb asks again
        with pytest.raises(TrackingError, match=r"(?s)previously created and deleted.*--rebuild`"):
            sync_fold(trained)
    assert sync_fold(trained, rebuild=True) == 6
    assert holds_all(server, trained)


def test_a_run_that_holds_more_than_was_sent(trained: Fold, server: WandbServer) -> None:
    write_atomic(trained.wandb, to_json({"id": "0123abcd", "stamp": [6, True, True]}))  # of an older version
    sync_fold(trained)
    held = server.held.runs["0123abcd"].lines["wandb-history.jsonl"]
    held += held
    write_atomic(trained.wandb, to_json({"id": "0123abcd"}))
    with pytest.raises(TrackingError, match=r"W&B holds 12 rows, expected 6: .*`contrails sync .* --fold 0 --rebuild`"):
        sync_fold(trained)


def test_rows_that_were_made_again_go_into_a_new_run(trained: Fold, server: WandbServer) -> None:
    sync_fold(trained)
    old = read_json(trained.wandb)["id"]
    metrics = trained.attempts()[0].metrics
    metrics.write_text(metrics.read_text().replace('"train/loss":', '"train/loss":1', 1))
    assert sync_fold(trained) == 6
    assert read_json(trained.wandb)["id"] != old
    assert server.held.runs[read_json(trained.wandb)["id"]].rows == fold_metrics(trained)
