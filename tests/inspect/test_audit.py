"""The audit: what is found in records that were made suspicious, and what is done with an exclusion list."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeRun

from contrails.cli.main import cli
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError
from contrails.folds.exclusions import excluded_rows, read_exclusions, write_exclusions
from contrails.folds.filelists import read_filelist
from contrails.inspect.audit import Finding, Limits, audit, reasons
from contrails.train.fold_data import training_rows

from raw_records import write_metadata, write_record


def remask(record: Path, mask: np.ndarray) -> None:
    np.save(record / "human_individual_masks.npy", np.repeat(mask[..., None, None].astype(np.int32), 4, axis=3))


@pytest.fixture(scope="module")
def suspicious(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten records of 64x64: 0, 6, 7 and 9 in order, the others each with what its test says."""
    root = tmp_path_factory.mktemp("audit")
    made = [write_record(root / "raw", "train", str(index), size=64, seed=index) for index in range(8)]
    remask(made[1], np.eye(64) * (np.arange(64) < 9))  # 9 pixels
    box = np.zeros((64, 64))
    box[10:16, 20:30] = 1
    remask(made[2], box)
    thin = np.zeros((64, 64))
    thin[10:14, 20:60] = 1
    remask(made[3], thin)  # four pixels wide: a contrail
    shutil.copytree(made[0], root / "raw" / "train" / "8")  # a duplicate
    remask(made[4], np.load(made[3] / "human_individual_masks.npy")[..., 0, 0])
    shutil.copytree(made[5], root / "raw" / "train" / "9")
    for band in made[5].glob("band*.npy"):
        ripple_k = np.float32(0.1) * (np.arange(64) % 2).astype(np.float32)[:, None, None]
        np.save(root / "raw" / "train" / "9" / band.name, np.load(band) + ripple_k)
    remask(root / "raw" / "train" / "9", np.zeros((64, 64)))  # nearly 5, without its contrail
    entries = [
        {"record_id": str(index), "tile": "one" if index in (5, 9) else f"{index}", "timestamp": 1e9 + 600 * index}
        for index in range(10)
    ]
    write_metadata(root / "raw", "train", entries)
    cli(["prepare", str(root / "raw"), str(root / "train.h5")], standalone_mode=False)
    return open_dataset(root / "train.h5")


def found(findings: list[Finding]) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    return {(finding.kind, finding.rows, finding.excluded) for finding in findings}


EXPECTED = {
    ("tiny", (1,), (1,)),
    ("rectangle", (2,), (2,)),
    ("duplicate", (0, 8), (8,)),
    ("same mask", (3, 4), (4,)),
    ("near-duplicate", (5, 9), (9,)),
    ("neighbours", (5, 9), ()),
}


def test_everything_suspicious_is_found_and_nothing_else(suspicious: Dataset) -> None:
    findings = audit(suspicious, Limits())
    assert found(findings) == EXPECTED
    said = {finding.kind: finding.reason for finding in findings}
    assert said["tiny"] == "9 positive pixels"
    assert said["rectangle"] == "a full rectangle of 6 x 10 pixels at row 10, column 20"
    assert said["neighbours"] == f"one location, 40 minutes apart: {suspicious.hard(5).sum()} and 0 pixels"
    assert set(reasons(findings, suspicious)) == {"1", "2", "8", "4", "9"}


def test_near_duplicates_of_one_fold_are_no_leak(suspicious: Dataset) -> None:
    folds = dict.fromkeys(suspicious.record_ids, 0)
    assert "near-duplicate" not in Counter(finding.kind for finding in audit(suspicious, Limits(), folds))
    crossing = [f for f in audit(suspicious, Limits(), folds | {"9": 1}) if f.kind == "near-duplicate"]
    assert found(crossing) == {("near-duplicate", (5, 9), (9,))}
    assert crossing[0].reason.endswith("in the folds 0, 1")


def test_a_prediction_that_contradicts_a_label_is_told(suspicious: Dataset) -> None:
    masks = {name: suspicious.hard(row) * 1 for row, name in enumerate(suspicious.record_ids)}
    assert found(audit(suspicious, Limits(), None, masks, 1)) == EXPECTED
    masks["6"], masks["9"] = np.zeros((64, 64)), np.ones((64, 64))
    told = [finding for finding in audit(suspicious, Limits(), None, masks, 1) if finding.kind == "disagreement"]
    assert found(told) == {("disagreement", (6,), (6,)), ("disagreement", (9,), (9,))}
    assert told[1].reason == "Dice 0.00 out of fold: 0 pixels marked, 4096 predicted, 0 in common"
    ignored = suspicious.votes.copy()
    ignored[6] = 255  # nothing of it counts
    nothing = audit(replace(suspicious, votes=ignored), Limits(), None, {"6": np.ones((64, 64))}, 1)
    assert not [finding for finding in nothing if finding.kind == "disagreement"]


def test_the_command_writes_a_page_and_a_list_that_a_recipe_takes(
    suspicious: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "audit", str(suspicious.path), "-o", str(tmp_path / "audit")]
    cli([*arguments, "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert {(entry["kind"], *entry["excluded"]) for entry in told} == {
        (kind, *map(str, out)) for kind, _, out in EXPECTED
    }
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert page.count("<h3>") == len(EXPECTED)
    assert page.count("data:image/webp;base64,") == 2 * sum(len(rows) for _, rows, _ in EXPECTED)
    cli(arguments, standalone_mode=False)
    assert f"-o data.exclude={tmp_path / 'audit' / 'exclude.csv'}" in capsys.readouterr().out
    assert read_exclusions(tmp_path / "audit" / "exclude.csv") == reasons(audit(suspicious, Limits()), suspicious)
    assert excluded_rows(tmp_path / "audit" / "exclude.csv", suspicious).tolist() == [1, 2, 4, 8, 9]


def test_excluded_records_are_validated_on_and_not_trained_on(
    make_run: MakeRun, tiny_data: Path, tmp_path: Path
) -> None:
    dataset, filelist = open_dataset(tiny_data / "train.h5"), read_filelist(tiny_data / "three.csv")
    write_exclusions(tmp_path / "x.csv", {dataset.record_ids[3]: "tiny", dataset.record_ids[5]: "a, b"}, "by hand")
    recipe = make_run(data={"exclude": str(tmp_path / "x.csv")}).read_config().recipe
    trained: set[int] = set()
    validated: set[int] = set()
    for fold in "012":
        training, validation = training_rows(dataset, filelist, fold, recipe)
        trained, validated = trained | set(training.tolist()), validated | set(validation.tolist())
    assert trained == set(range(12)) - {3, 5}
    assert validated == set(range(12))
    write_exclusions(tmp_path / "x.csv", dict.fromkeys(dataset.record_ids, "all"), "by hand")
    with pytest.raises(
        DataError, match=r"fold 0: expected records to train on, found none; check \S+three.csv and \S+x.csv"
    ):
        training_rows(dataset, filelist, "0", recipe)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("record_id,why\n", "expected the columns record_id,reason, found record_id,why"),
        ("record_id,reason\n1,2,3\n", "line 2: expected record_id,reason, found '1,2,3'"),
        ("record_id,reason\n1,a\n1,b\n", "line 3: expected each record once, found 1 twice"),
        (
            "record_id,reason\nelse,a\n",
            "such as else; remove these lines, or make the list again with `contrails data audit",
        ),
    ],
)
def test_a_wrong_exclusion_list_is_refused(suspicious: Dataset, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        excluded_rows(tmp_path / "x.csv", suspicious)


def test_a_run_names_the_exclusion_list_that_it_was_made_with(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contrails.cluster.schedulers.sites import Site
    from contrails.cluster.submit.create import create_run
    from contrails.errors import RunError
    from contrails.recipe.recipe import Recipe

    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path / "runs"))
    listed = tmp_path / "x.csv"
    write_exclusions(listed, {"1001": "tiny"}, "by hand")
    data = {"dataset": str(tiny_data / "train.h5"), "filelist": str(tiny_data / "three.csv"), "exclude": str(listed)}
    recipe = Recipe.model_validate({"data": data})
    site = Site(name="local", device="cpu")
    _, config = create_run(recipe, site, "clean")
    assert len(config.data.exclude) == 64
    write_exclusions(listed, {"1002": "tiny"}, "by hand")
    with pytest.raises(RunError, match="the content of the dataset, the file list, the exclusion list"):
        create_run(recipe, site, "clean")
    listed.unlink()
    with pytest.raises(DataError, match=r"expected an exclusion list at \S+x.csv, found none"):
        create_run(recipe, site, "other")
