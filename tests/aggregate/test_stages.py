"""Two stages: where the gate cuts, and what that does to predictions, scores and files."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeRun
from sklearn.metrics import average_precision_score, roc_auc_score

from contrails.aggregate.apply import predictor
from contrails.aggregate.assemble import make_ensemble
from contrails.aggregate.decide.gate import NO_GATE, fit_gate
from contrails.aggregate.decide.postprocess import compare, top_logit
from contrails.aggregate.ensemble import Ensemble, read_ensemble
from contrails.aggregate.options import Options
from contrails.aggregate.scores.outoffold import StoredProbabilities
from contrails.cli.main import cli
from contrails.cli.results.evaluate import _farthest
from contrails.cli.results.figures import show_ensemble
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError, RecipeError, RunError
from contrails.folds.filelists import read_filelist, write_filelist
from contrails.metrics import Histogram
from contrails.runs.folder import Run
from contrails.train.fold import train_fold

from raw_records import write_record
from scored_records import scored_records

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("restore_process")


def brute_force(masks: np.ndarray, probabilities: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> float:
    """Return the best Dice over all cuts and 256 thresholds, on the chosen records."""
    coarse = np.round(probabilities * 65_535).astype(int) // 256
    best = 0.0
    for cut in [NO_GATE, *scores]:
        for level in range(256):
            predicted = (coarse >= level) & (scores >= cut)[:, None, None]
            total = predicted[chosen].sum() + masks[chosen].sum()
            best = max(best, 2 * (predicted & masks)[chosen].sum() / total if total else 0.0)
    return best


def dice(masks: np.ndarray, probabilities: np.ndarray, kept: np.ndarray) -> float:
    """Return the best Dice over 256 thresholds where only some records pass."""
    coarse = np.round(probabilities * 65_535).astype(int) // 256
    scores = [
        2
        * ((coarse >= level) & kept[:, None, None] & masks).sum()
        / (((coarse >= level) & kept[:, None, None]).sum() + masks.sum())
        for level in range(256)
    ]
    return float(max(scores))


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_is_the_best_one_and_is_fitted_on_other_parts(tiny_data: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((12, 32, 32)) < np.where(np.arange(12) % 2, 0.2, 0.0)[:, None, None]
    probabilities = random.random((12, 32, 32)) * 0.7 + 0.3 * masks
    scores = np.arange(12) % 2 + random.normal(0, 0.6, 12)
    parts = ["0"] * 6 + ["1"] * 6
    scored = scored_records(tiny_data / "train.h5", masks, probabilities, parts)
    gate = fit_gate(scored, scores)
    everything = np.ones(12, bool)
    assert dice(masks, probabilities, scores >= gate.cut) == pytest.approx(
        brute_force(masks, probabilities, scores, everything)
    )
    # what part 0 is cut at knows nothing of part 0
    others = fit_gate(scored_records(tiny_data / "train.h5", masks[6:], probabilities[6:], parts[6:]), scores[6:])
    assert (scores[6:] >= gate.by_fold["0"]).tolist() == (scores[6:] >= others.cut).tolist()
    passed, final = gate.cross_fitted(scored), gate.final(scored)
    for index, score in enumerate(scores):
        is_empty = score < gate.by_fold[parts[index]]
        assert np.array_equal(passed.probabilities(index), scored.probabilities(index) * (not is_empty))
        assert final.probabilities(index).any() == (score >= gate.cut)


def test_a_gate_that_knows_nothing_lets_all_pass(tiny_data: Path) -> None:
    masks = np.zeros((4, 32, 32), bool)
    masks[:, 5:9] = True
    scored = scored_records(tiny_data / "train.h5", masks, masks * 0.9, ["0", "0", "1", "1"])
    assert fit_gate(scored, np.zeros(4)).cut == NO_GATE
    assert fit_gate(scored, np.arange(4.0)).cut == NO_GATE


@pytest.fixture
def gate(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """An ensemble of three folds, trained once and copied."""
    once = tmp_path_factory.getbasetemp() / "gate_run"
    run = make_run("gate", train={"epochs": 2})
    if not once.exists():
        for fold in "012":
            train_fold(run.fold(fold))
        shutil.copytree(run.path / "folds", once)
    shutil.copytree(once, run.path / "folds", dirs_exist_ok=True)
    return make_ensemble([run], run.aggregate("default"), Options(weights="best"), CPU)


def positives(gate: Ensemble, make_run: MakeRun, **data: object) -> Run:
    """A run with the same folds under another name."""
    run = make_run("positives", train={"epochs": 2}, data=data)
    shutil.copytree(gate.path.parents[1] / "folds", run.path / "folds")
    return run


def test_behind_a_gate_records_are_empty_wherever_they_are_predicted(
    gate: Ensemble, make_run: MakeRun, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, dataset = positives(gate, make_run), open_dataset(tiny_data / "test.h5")
    cli(["aggregate", str(run.path), "--weights", "best", "--gate", str(gate.path)], standalone_mode=False)
    assert "Two stages, out of fold" in capsys.readouterr().out
    path = run.aggregate("default")
    made, row = read_ensemble(path), read_ensemble(path).scores["gate"]
    assert (
        row["dice_of_gate"] == pytest.approx(row["dice_without"]) == gate.scores["dice_cross_fitted"]
    )  # the same ones
    assert row["dice"] == pytest.approx(row["dice_without"] + row["gain"])
    assert row["kept"] == (row["gain"] > row["noise"]) == (made.gate_below is not None) == (path / "gate").exists()
    shutil.copytree(gate.path, path / "gate", dirs_exist_ok=True)  # as if it were kept
    shutil.rmtree(gate.path)  # the ensemble's folder is all that prediction needs
    rows = np.arange(3)
    images = np.concatenate([part for _, part in predictor(read_ensemble(path / "gate"), dataset, CPU)(rows)])
    scores = sorted(top_logit(image) for image in images)
    content = json.loads((path / "ensemble.json").read_text())
    (path / "ensemble.json").write_text(json.dumps(content | {"gate_below": (scores[0] + scores[1]) / 2}))
    behind = np.concatenate([part for _, part in predictor(read_ensemble(path), dataset, CPU)(rows)])
    lowest = int(np.argmin([top_logit(image) for image in images]))
    assert not behind[lowest].any()
    assert all(np.array_equal(behind[row], images[row]) for row in range(3) if row != lowest)
    cli(["predict", str(path), str(tiny_data / "test.h5"), str(tmp_path / "a.csv")], standalone_mode=False)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[1 + lowest] == f"{dataset.record_ids[lowest]},-"


def test_the_gate_scores_records_by_members_that_have_not_seen_them(gate: Ensemble, tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data / "train.h5")
    predicted = StoredProbabilities(gate, dataset)
    filelist = read_filelist(tiny_data / "three.csv")
    for fold, member in zip("012", gate.members, strict=True):
        alone = Ensemble(**vars(gate) | {"members": (member,)})
        rows = dataset.rows(filelist.validation(fold))
        for part, images in predictor(alone, dataset, CPU)(rows):
            for row, image in zip(part, images, strict=True):
                assert np.abs(predicted[dataset.record_ids[row]].astype(int) - image).max() <= 1


def test_a_gate_that_does_not_fit_is_refused(
    gate: Ensemble, make_run: MakeRun, tiny_data: Path, tmp_path: Path
) -> None:
    run = positives(gate, make_run)
    with pytest.raises(RecipeError, match="would be its own gate"):
        make_ensemble([run], gate.path, Options(weights="best", gate=str(gate.path)), CPU)
    filelist = read_filelist(tiny_data / "three.csv")
    turned = type(filelist)(filelist.record_ids, filelist.groups, tuple((fold + 1) % 3 for fold in filelist.folds))
    write_filelist(tmp_path / "turned.csv", turned, "by hand")
    shutil.rmtree(run.path)
    other = positives(gate, make_run, filelist=str(tmp_path / "turned.csv"))
    with pytest.raises(
        RunError, match=r"whose folds differ from those of .*turned.csv: it may have trained on records"
    ):
        make_ensemble(
            [other], other.aggregate("default"), Options(weights="best", gate=str(gate.path), allow=True), CPU
        )


def test_a_gate_is_worth_what_it_gains(tiny_data: Path) -> None:
    random = np.random.default_rng(0)
    holds = np.arange(40) % 2 == 0
    masks = (random.random((40, 32, 32)) < 0.2) & holds[:, None, None]
    probabilities = random.random((40, 32, 32)) * 0.7 + 0.3 * masks
    parts = [str(index % 4) for index in range(40)]
    scored = scored_records(tiny_data / "train.h5", masks, probabilities, parts, [str(index) for index in range(40)])
    thresholds = dict.fromkeys("0123", 0.5)
    found = []
    for scores in (holds * 1.0, np.ones(40)):
        gate = fit_gate(scored, scores)
        found.append(compare("gate", gate.cut, (scored, thresholds), (gate.cross_fitted(scored), thresholds)))
    knows, knows_nothing = found
    predicted = probabilities >= 0.5
    before, after = (
        2 * (each & masks).sum() / (each.sum() + masks.sum()) for each in (predicted, predicted & holds[:, None, None])
    )
    assert knows["gain"] == pytest.approx(after - before, abs=1e-4)
    assert knows["kept"]
    assert (knows_nothing["gain"], knows_nothing["kept"]) == (0.0, False)


def test_an_audit_compares_labels_with_what_members_predicted(
    gate: Ensemble, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset(tiny_data / "train.h5")
    predicted = StoredProbabilities(gate, dataset)
    expected = {}
    for row, name in enumerate(dataset.record_ids):
        mask, guess = dataset.hard(row), predicted[name] >= round(gate.threshold * 65_535)
        if mask.sum() + guess.sum() >= 100:
            reason = f"{mask.sum()} pixels marked, {guess.sum()} predicted, {(mask & guess).sum()} in common"
            expected[name] = f"Dice {2 * (mask & guess).sum() / (mask.sum() + guess.sum()):.2f} out of fold: {reason}"
    arguments = ["--aggregate", str(gate.path), "--dice", "1.1", "--json", "-o", str(tmp_path / "audit")]
    cli(["data", "audit", str(dataset.path), *arguments], standalone_mode=False)
    found = {f["records"][0]: f["reason"] for f in json.loads(capsys.readouterr().out) if f["kind"] == "disagreement"}
    assert found == expected
    assert len(found) >= 6  # all that are positive
    with pytest.raises(DataError, match=r"expected an ensemble of the dataset \S+test.h5, found one of \S+train.h5"):
        cli(["data", "audit", str(tiny_data / "test.h5"), *arguments], standalone_mode=False)


def test_a_classifier_is_a_gate(gate: Ensemble, make_run: MakeRun, tiny_data: Path) -> None:
    classifier = make_run("classifier", model={"task": "classify"}, train={"epochs": 1}, loss={"terms": ["bce"]})
    for fold in "012":
        train_fold(classifier.fold(fold))
    made = make_ensemble([classifier], classifier.aggregate("default"), Options(weights="best"), CPU)
    image = next(iter(StoredProbabilities(made, open_dataset(tiny_data / "train.h5")).values()))
    assert len(np.unique(image)) == 1  # its answer for all of the record
    run = positives(gate, make_run)
    options = Options(weights="best", gate=str(made.path))
    row = make_ensemble([run], run.aggregate("default"), options, CPU).scores["gate"]
    assert row["dice_without"] == gate.scores["dice_cross_fitted"]


@pytest.fixture
def classifier(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of three folds that only says whether a record holds anything, trained once and copied."""
    once = tmp_path_factory.getbasetemp() / "classifier_run"
    run = make_run("classifier", model={"task": "classify"}, train={"epochs": 2}, loss={"terms": ["bce"]})
    if not once.exists():
        for fold in "012":
            train_fold(run.fold(fold))
        shutil.copytree(run.path / "folds", once)
    shutil.copytree(once, run.path / "folds", dirs_exist_ok=True)
    return run


def answers(made: Ensemble, dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each record what its own fold's member says, whether it holds anything, and its fold."""
    predicted = StoredProbabilities(made, dataset)
    said = np.array([predicted[name][0, 0] for name in dataset.record_ids])
    filelist = read_filelist(made.path / "filelist.csv")
    fold_of = dict(zip(filelist.record_ids, filelist.folds, strict=True))
    holds = np.array([dataset.hard(row).any() for row in range(dataset.num_records)])
    return said, holds, np.array([fold_of[name] for name in dataset.record_ids])


def test_a_classifier_is_scored_by_record(classifier: Run, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = open_dataset(tiny_data / "train.h5")
    cli(["aggregate", str(classifier.path), "--weights", "best"], standalone_mode=False)
    shown = capsys.readouterr().out
    made = read_ensemble(classifier.aggregate("default"))
    said, holds, folds = answers(made, dataset)
    cut = np.zeros(12, bool)
    for fold in range(3):  # at the threshold that is best for the records of the others
        others = folds != fold
        histogram = Histogram(*(np.bincount(said[others & each], minlength=65_536) for each in (holds, ~holds)))
        cut[~others] = said[~others] >= round(histogram.best()[1] * 65_535)
    tp, fp, fn, tn = (
        (cut == a) & (holds == b) for a, b in ((True, True), (True, False), (False, True), (False, False))
    )
    counts = {name: int(each.sum()) for name, each in (("tp", tp), ("fp", fp), ("fn", fn), ("tn", tn))}
    scores = made.scores
    assert (scores["scored_by"], scores["confusion"], sum(counts.values())) == ("record", counts, 12)
    dice = 2 * counts["tp"] / (2 * counts["tp"] + counts["fp"] + counts["fn"])
    assert scores["dice"] == pytest.approx(dice)
    assert scores["interval"][0] <= dice <= scores["interval"][1]
    assert scores["auc"] == pytest.approx(roc_auc_score(holds, said))
    assert scores["auc_pr"] == pytest.approx(average_precision_score(holds, said))
    assert (made.steps, scores["decisions"]) == ((), [])  # there is no mask to process
    assert f"Dice by record: {dice:.4f} cross-fitted" in shown
    assert f"AUC {scores['auc']:.4f}" in shown
    assert f"records: {counts['tp']} found, {counts['fp']} false, {counts['fn']} missed" in shown
    assert "rightly empty (cross-fitted, each fold cut at the threshold that the others chose)" in shown


def test_a_classifier_is_evaluated_and_reported_by_record(
    classifier: Run, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_ensemble([classifier], classifier.aggregate("default"), Options(weights="best"), CPU)
    for index in range(4):
        write_record(
            tmp_path / "raw", "validation", f"{3000 + index}", seed=50 + index, positive=index % 2 == 0, size=32
        )
    cli(["prepare", str(tmp_path / "raw"), str(tmp_path / "v.h5"), "--split", "validation"], standalone_mode=False)
    capsys.readouterr()
    arguments = ["evaluate", str(made.path), str(tmp_path / "v.h5"), "--by", "size"]
    cli([*arguments, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert sum(found[key] for key in ("tp", "fp", "fn", "tn")) == found["num_records"] == 4
    assert (found["tp"] + found["fn"], found["scored_by"]) == (2, "record")
    assert found["by"]["none"]["records"] == 2
    assert 0 <= found["auc"] <= 1
    cli(arguments, standalone_mode=False)
    shown = capsys.readouterr().out
    assert "by record: tp" in shown
    assert "records farthest from the truth" in shown
    cli(["report", str(classifier.path)], standalone_mode=False)
    page = classifier.report.read_text()
    for text in ("Dice by record out of fold", "share of records with contrail", '<th scope="col">records</th>'):
        assert text in page
    assert "best Dice by record" in page
    assert "share of pixels" not in page
    confusion = page.partition('<table class="confusion">')[2].partition("</table>")[0]
    counts = [int(text) for text in re.findall(r"<td>([0-9]+)<small>", confusion)]
    assert counts == [made.scores["confusion"][key] for key in ("tp", "fn", "fp", "tn")]
    assert "By record, cross-fitted, each fold cut at the threshold that the others chose: precision" in page
    gallery = page.partition('id="gallery"')[2].partition("</section>")[0]
    for text in ("farthest from the truth first", 'data-kind="farthest"', "probability 0.", "· truth 1", "· truth 0"):
        assert text in gallery
    for text in ("Dice", "pixels", "worst", " px"):
        assert text not in gallery


def test_scores_by_record_and_by_pixel_do_not_mix(
    classifier: Run, gate: Ensemble, make_run: MakeRun, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_ensemble([classifier], classifier.aggregate("default"), Options(weights="best"), CPU)
    run = positives(gate, make_run)
    options = Options(weights="best", gate=str(made.path))
    row = make_ensemble([run], run.aggregate("default"), options, CPU).scores["gate"]
    assert (row["gate_scored_by"], row["dice_of_gate"]) == ("record", made.scores["dice_cross_fitted"])
    cli(["aggregate", str(run.path), "--weights", "best", "--gate", str(made.path)], standalone_mode=False)
    assert "the gate itself, by record (AUC" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"expected runs of one kind, found classifiers .* and segmenters"):
        make_ensemble([classifier, run], run.aggregate("both"), Options(weights="best"), CPU)
    with pytest.raises(RecipeError, match="--gate: expected runs of segmenters, found classifiers"):
        make_ensemble([classifier], classifier.aggregate("b"), Options(weights="best", gate=str(gate.path)), CPU)
    with pytest.raises(DataError, match="expected an ensemble that predicts masks, found an ensemble of classifiers"):
        cli(["data", "audit", str(tiny_data / "train.h5"), "--aggregate", str(made.path)], standalone_mode=False)
    capsys.readouterr()
    cli(["compare", str(classifier.path), str(run.path)], standalone_mode=False)
    assert "no paired comparison: the first is scored by record and the second by pixel" in capsys.readouterr().out


def test_an_ensemble_that_was_scored_by_pixel_is_read_and_made_anew(classifier: Run, tiny_data: Path) -> None:
    path, options = classifier.aggregate("default"), Options(weights="best")
    made = make_ensemble([classifier], path, options, CPU)
    content = json.loads((path / "ensemble.json").read_text())
    for key in ("scored_by", "interval", "confusion", "auc", "auc_pr"):
        content["scores"].pop(key)
    content["scores"]["intervals"]["dice"] = [0.1, 0.2]
    (path / "ensemble.json").write_text(json.dumps(content))
    old = read_ensemble(path)
    show_ensemble(old)
    cli(["report", str(classifier.path)], standalone_mode=False)
    assert "share of pixels that are contrail" in classifier.report.read_text()
    assert make_ensemble([classifier], path, options, CPU) == made


def test_a_record_without_a_label_is_not_far_from_the_truth() -> None:
    rows = [("a", 0, 1, 0, 0, 0.6), ("ignored", 0, 0, 0, 0, 0.9), ("b", 1, 0, 0, 0, 0.3)]
    table = pd.DataFrame(rows, columns=["record_id", "tp", "fp", "fn", "tn", "mean_probability"]).assign(time="")
    assert list(_farthest(table)["record_id"]) == ["b", "a"]


def test_masks_of_classifiers_are_told_for_what_they_are(
    classifier: Run, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = str(tiny_data / "test.h5")
    cli(["aggregate", str(classifier.path), "--weights", "best", "--data", test], standalone_mode=False)
    folder = classifier.aggregate("default")
    warning = (
        f"warning: {folder} consists of classifiers (model.task = 'classify'), which say whether a record is positive, "
        "not where: each mask, or row of a submission, holds all pixels of its record or none; to use it with "
        f"segmenters: `contrails aggregate RUN --gate {folder}`"
    )
    assert warning in capsys.readouterr().err
    for out, kind in (("a.csv", "submission"), ("masks", "npy"), ("p.h5", "probabilities")):
        cli(["predict", str(folder), test, str(tmp_path / out), "--format", kind], standalone_mode=False)
        assert warning in capsys.readouterr().err
    masks = [np.load(path) for path in (tmp_path / "masks").glob("*.npy")]
    assert [len(np.unique(mask)) for mask in masks] == [1, 1, 1]
    with pytest.raises(RunError, match="expected members that predict masks, found classifiers,"):
        cli(["predict", str(folder), test, str(tmp_path / "pseudo"), "--format", "pseudo"], standalone_mode=False)


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        ("a,1 16\nb,-\n", "warning: 1 masks hold all pixels of their records, the others none, as a classifier's do"),
        ("a,1 16\nb,1 16\n", "warning: every pixel of every mask is positive"),
        ("a,-\nb,-\n", "warning: every mask is empty"),
        ("a,1 16\nb,1 3\n", ""),
    ],
)
def test_a_submission_of_whole_records_is_told(
    rows: str, warning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(f"record_id,encoded_pixels\n{rows}")
    cli(["submission", "check", str(tmp_path / "a.csv"), "--shape", "4,4"], standalone_mode=False)
    told = capsys.readouterr().err
    assert told.startswith(warning) if warning else not told
