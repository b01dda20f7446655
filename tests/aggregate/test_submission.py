"""Submissions: written as the competition wants them, and checked whoever wrote them."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contrails.aggregate.output.submission import Summary, check_submission, write_submission
from contrails.cli.main import cli
from contrails.errors import DataError, StorageError

HEADER = "record_id,encoded_pixels\n"


def masks(*ids: str) -> Iterator[tuple[str, np.ndarray]]:
    """Masks of 4x4 with as many pixels at their beginning as the record's place: none for the first."""
    for count, record_id in enumerate(ids):
        mask = np.zeros((4, 4), bool)
        mask[:count, 0] = True
        yield record_id, mask


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_written_in_the_order_of_the_masks_or_of_the_sample(tmp_path: Path) -> None:
    write_submission(tmp_path / "a.csv", masks("b", "a", "c"))
    assert (tmp_path / "a.csv").read_text() == HEADER + "b,-\na,1 1\nc,1 2\n"
    sample = write(tmp_path / "sample.csv", HEADER + "a,1 1\nb,\nc,-\n")
    write_submission(tmp_path / "b.csv", masks("b", "a", "c"), sample)
    assert (tmp_path / "b.csv").read_text() == HEADER + "a,1 1\nb,-\nc,1 2\n"


def test_other_records_than_the_sample_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    sample = write(tmp_path / "sample.csv", HEADER + "a,-\nb,-\n")
    with pytest.raises(DataError) as caught:
        write_submission(tmp_path / "x.csv", masks("b", "c", "d"), sample)
    assert str(caught.value).splitlines() == [
        f"the predicted dataset, compared with {sample}, lacks 1 records, such as a (expected 2 in all)",
        f"the predicted dataset, compared with {sample}, has too many: 2 records, such as c, d (expected 2 in all)",
    ]
    with pytest.raises(DataError, match="record a is predicted twice"):
        write_submission(tmp_path / "x.csv", masks("a", "b", "a"))
    assert not (tmp_path / "x.csv").exists()


def test_a_prediction_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "old")

    def failing() -> Iterator[tuple[str, np.ndarray]]:
        yield from masks("a")
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        write_submission(path, failing())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_summary_counts(tmp_path: Path) -> None:
    write_submission(tmp_path / "x.csv", masks("a", "b", "c", "d"))
    expected = Summary(records=4, empty=1, whole=0, positive_pixels=6, largest_record="d", largest_pixels=3)
    assert check_submission(tmp_path / "x.csv", (4, 4)) == expected
    foreign = '\ufeff"record_id","encoded_pixels"\r\n"a","-"\r\n\r\n"d","1 3"\r\n'
    assert check_submission(write(tmp_path / "y.csv", foreign), (4, 4)).positive_pixels == 3


def test_a_noisy_mask_is_no_longer_than_a_file_may_hold(tmp_path: Path) -> None:
    noisy = np.indices((256, 256)).sum(0) % 2 == 0
    write_submission(tmp_path / "x.csv", [("a", noisy)])
    assert (tmp_path / "x.csv").stat().st_size > 200_000
    limit = csv.field_size_limit()
    assert check_submission(tmp_path / "x.csv", (256, 256)).positive_pixels == noisy.sum()
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the header record_id,encoded_pixels, found nothing"),
        ("id,rle\na,-\n", "expected the header record_id,encoded_pixels, found id,rle"),
        (HEADER, "expected records below its header, found none"),
        (HEADER + "a,-\na,-\n", "line 3: record a appears twice"),
        (HEADER + "a,-\n\nb,1 2,3\n", "line 4: expected record_id,encoded_pixels, found 3 fields"),
        (HEADER + "a,-\nb,\n", "record b: expected pairs of start and length, or '-', found 0 numbers"),
        (HEADER + "a,-\nb,4 2 1 2\n", r"record b: run 2 \(start 1, length 2\) begins before .* not sorted"),
        (HEADER + "a,1 3 2 1\nb,-\n", r"record a: run 2 \(start 2, length 1\) overlaps"),
        (HEADER + "a,-\nb,15 3\n", r"record b: run 1 \(start 15, length 3\) leaves the image of 16 pixels"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", text)
    with pytest.raises(DataError, match=f"^{path}.*{message}"):
        check_submission(path, (4, 4))


def test_many_wrong_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", HEADER + "".join(f"r{number},0 1\n" for number in range(9)))
    with pytest.raises(DataError) as caught:
        check_submission(path, (4, 4))
    lines = str(caught.value).splitlines()
    assert [line.split()[2] for line in lines[:-1]] == ["r0:", "r1:", "r2:", "r3:", "r4:"]
    assert lines[-1] == "and 4 more of 9 records"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a submission at .*none.csv, found no such file"):
        check_submission(tmp_path / "none.csv", (4, 4))
    with pytest.raises(StorageError, match="cannot read"):
        check_submission(tmp_path, (4, 4))
    (tmp_path / "x.csv").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(DataError, match="not a text file in UTF-8"):
        check_submission(tmp_path / "x.csv", (4, 4))


def check(*arguments: str | Path) -> None:
    cli(["submission", "check", *(str(argument) for argument in arguments)], standalone_mode=False)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sample = tmp_path / "x.csv", write(tmp_path / "sample.csv", HEADER + "b,-\na,-\n")
    write_submission(path, masks("a", "b"))
    check(path, "--shape", "4,4", "--sample", sample)
    shown = capsys.readouterr()
    assert f"{path}: valid, 2 records, 1 empty, 1 pixels" in shown.out
    assert "largest: record b with 1 pixels" in shown.out
    assert shown.err == ""
    check(path, "--json")
    assert json.loads(capsys.readouterr().out) == {
        "records": 2,
        "empty": 1,
        "whole": 0,
        "positive_pixels": 1,
        "largest_record": "b",
        "largest_pixels": 1,
    }
    with pytest.raises(DataError, match="lacks 1 records, such as c"):
        check(path, "--sample", write(sample, HEADER + "b,-\na,-\nc,-\n"))


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_submission_without_any_pixel_is_valid_with_a_warning(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(write(tmp_path / "x.csv", HEADER + "a,-\nb,-\n"), *options)
    assert "warning: every mask is empty" in capsys.readouterr().err


def test_a_submission_of_every_pixel_is_valid_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(write(tmp_path / "x.csv", HEADER + "a,1 16\nb,1 16\n"), "--shape=4,4")
    assert "warning: every pixel of every mask is positive" in capsys.readouterr().err
    check(write(tmp_path / "y.csv", HEADER + "a,1 16\nb,1 15\n"), "--shape=4,4")
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["256", "256x256", "0,4", "-4,4", "4,4,4", "a,b"])
def test_a_shape_is_two_positive_numbers(shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli(["submission", "check", str(tmp_path / "x.csv"), f"--shape={shape}"])
    assert caught.value.code == 2
    assert f"'{shape}': expected height,width such as 256,256" in capsys.readouterr().err


def test_the_real_sample_submission(real_data: Path) -> None:
    sample = real_data / "sample_submission.csv"
    summary = check_submission(sample, (256, 256), sample)
    assert (summary.records, summary.empty, summary.positive_pixels) == (2, 1, 8)
