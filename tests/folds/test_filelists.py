"""File lists: what is written is read, what is wrong is named, groups stay together and folds are balanced."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrails.errors import DataError, StorageError
from contrails.folds.filelists import (
    FileList,
    leaks,
    make_folds,
    read_filelist,
    require_match,
    time_groups,
    write_filelist,
)

HOUR = 3600.0
FIVE = FileList(("a", "b", "c", "d", "e"), ("t-0", "t-0", "u-0", "v-0", "w-0"), (0, 0, 1, -1, -2))


def folds_of(
    num_records: int = 60,
    num_folds: int = 5,
    *,
    per_group: int = 2,
    positive: int = 2,
    held_out: float = 0.0,
    seed: int = 0,
) -> FileList:
    """A split of records of which every `positive`-th has a positive pixel."""
    rows = np.arange(num_records)
    ids = [f"r{row:05d}" for row in rows]
    groups = [f"g{row // per_group:05d}" for row in rows]
    everything = np.ones(num_records, bool)
    return make_folds(ids, groups, rows % positive == 0, everything, num_folds, held_out=held_out, seed=seed)


def sizes(filelist: FileList) -> dict[int, int]:
    return {fold: filelist.folds.count(fold) for fold in sorted(set(filelist.folds))}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lists" / "five.csv"
    odd = FileList(('with,comma "and" quote', "ü", "#3"), ("two\nlines", "", "g"), (0, 1, -1))
    for number, filelist in enumerate((FIVE, odd)):
        assert write_filelist(path.with_stem(f"list{number}"), filelist, "contrails split x --seed=7")
        assert read_filelist(path.with_stem(f"list{number}")) == filelist
    text = path.with_stem("list0").read_text()
    assert text.startswith("# contrails split x --seed=7\nrecord_id,group,fold\na,t-0,0\n")


def test_a_fold_trains_on_all_but_its_own_and_the_held_out() -> None:
    assert FIVE.num_folds == 2
    assert (FIVE.training("0"), FIVE.validation("0")) == (("c", "e"), ("a", "b"))
    assert (FIVE.training("1"), FIVE.validation("1")) == (("a", "b", "e"), ("c",))
    assert (FIVE.training("all"), FIVE.validation("all")) == (("a", "b", "c", "e"), ())
    assert FIVE.held_out() == ("d",)


@pytest.mark.parametrize("fold", ["2", "-1", "-2", "x", ""])
def test_a_fold_that_is_not_there_is_refused(fold: str) -> None:
    with pytest.raises(DataError, match=f"fold {fold}: expected a fold from 0 to 1, or 'all'"):
        FIVE.training(fold)
    with pytest.raises(DataError, match="a fold from 0 to 1"):
        FIVE.validation(fold)


@pytest.mark.parametrize(
    "text",
    [
        "record_id,group,fold\na,g,0\nb,h,1\n",
        "\ufeffrecord_id,group,fold\na,g,0\nb,h,1\n",
        "# made by hand\r\n\r\nrecord_id,group,fold\r\na,g,0\r\n\r\nb,h, 1\r\n",
        '# a\n# b "\nrecord_id,group,fold\n"a","g",0\nb,h,1',
    ],
    ids=["plain", "byte order mark", "CRLF, blank lines", "quotes, no newline at the end"],
)
def test_reads_what_other_programs_write(text: str, tmp_path: Path) -> None:
    assert read_filelist(write(tmp_path / "x.csv", text)) == FileList(("a", "b"), ("g", "h"), (0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the columns record_id,group,fold, found nothing"),
        ("# c\nrecord_id,fold\na,0\n", "line 2: expected the columns record_id,group,fold, found record_id,fold"),
        ("record_id,group,fold\n", r"no record belongs to fold 0 \(found none\)"),
        ("record_id,group,fold\na,g,0\na,g,1\n", "line 3: expected each record once, found a twice"),
        ("# c\nrecord_id,group,fold\na,g,0\nb,g\n", "line 4: expected record_id,group,fold, with .* found 'b,g'"),
        ("record_id,group,fold\na,g,0\n\nb,g,x\n", "line 4: .* found 'b,g,x'"),
        ("record_id,group,fold\na,g,-3\n", r"line 2: .* a fold from 0 on, -1 \(held out\) or -2 \(always trained\)"),
        ("record_id,group,fold\na,g,1.0\n", "line 2: .* found 'a,g,1.0'"),
        ("record_id,group,fold\na,g,99999999999999\n", "line 2: .* found 'a,g,99999999999999'"),
        ("record_id,group,fold\n,g,0\n", "line 2: .* found ',g,0'"),
        ("record_id,group,fold\na,g,0\n#b,g,0,\n", "line 3: .* found '#b,g,0,'"),
        ("record_id,group,fold\na,g,0\nb,g,1\nc,g,3\n", r"no record belongs to fold 2 \(found 0, 1, 3\)"),
        ("record_id,group,fold\na,g,1\nb,g,2\n", r"no record belongs to fold 0 \(found 1, 2\)"),
        ("record_id,group,fold\na,g,-1\n", r"no record belongs to fold 0 \(found -1\)"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", text)
    with pytest.raises(DataError, match=f"^{path}.*{message}"):
        read_filelist(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"expected a file list at .*none.csv, found none; make it with `contrails split"
    ):
        read_filelist(tmp_path / "none.csv")
    with pytest.raises(DataError, match="not a text file in UTF-8"):
        (tmp_path / "x.csv").write_bytes(b"\xff\xfe")
        read_filelist(tmp_path / "x.csv")
    with pytest.raises(StorageError, match=f"cannot read {tmp_path}"):
        read_filelist(tmp_path)


def test_another_list_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    assert write_filelist(path, FIVE, "contrails split x.h5")
    before = path.read_bytes()
    assert not write_filelist(path, FIVE, "contrails split ./x.h5")
    other = FileList(FIVE.record_ids, FIVE.groups, (1, 1, 0, -1, -2))
    with pytest.raises(DataError, match=r"x.csv exists and is another file list; runs may depend on it"):
        write_filelist(path, other, "contrails split x.h5")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_times_that_chain_within_the_window_are_one_group() -> None:
    tiles = ["t", "t", "u", "t", "t"]
    # unsorted; t: 0 h, 20 h, 40 h chain although the ends are 40 h apart; 64.5 h is more than 24 h later
    times = np.array([40, 0, 20, 64.5, 20]) * HOUR
    assert time_groups(tiles, times, 24) == ["t-0", "t-0", "u-0", "t-1", "t-0"]
    assert time_groups(tiles, times, 24.5) == ["t-0", "t-0", "u-0", "t-0", "t-0"]
    assert time_groups(tiles, times, 0) == ["t-2", "t-0", "u-0", "t-3", "t-1"]


def test_a_tile_with_an_unknown_time_is_one_group() -> None:
    times = np.array([0.0, 900 * HOUR, np.nan, 0.0, 900 * HOUR])
    assert time_groups(["t", "t", "t", "u", "u"], times, 24) == ["t-0", "t-0", "t-0", "u-0", "u-1"]


@given(st.lists(st.tuples(st.sampled_from("tu"), st.integers(0, 200)), max_size=30), st.integers(0, 30))
def test_groups_of_a_tile_are_further_apart_than_the_window(records: list[tuple[str, int]], window: int) -> None:
    times = np.array([hours * HOUR for _, hours in records])
    groups = time_groups([tile for tile, _ in records], times, window)
    for i, (tile, hours) in enumerate(records):
        for j, (other, later) in enumerate(records):
            if tile != other:
                assert groups[i] != groups[j]
            elif abs(hours - later) <= window:
                assert groups[i] == groups[j]
    for group in set(groups):
        chain = sorted(hours for (_, hours), of in zip(records, groups, strict=True) if of == group)
        assert all(after - before <= window for before, after in itertools.pairwise(chain))


def test_groups_never_cross_folds_and_folds_are_balanced() -> None:
    rng = np.random.default_rng(1)
    groups = [f"g{number:.0f}" for number in rng.random(2000) ** 3 * 200]
    positive = rng.random(2000) < 0.4
    ids = [f"r{row}" for row in range(2000)]
    made = make_folds(ids, groups, positive, np.ones(2000, bool), 5, held_out=0.1)
    folds = np.array(made.folds)
    assert all(len(set(folds[np.array(groups) == group])) == 1 for group in set(groups))
    assert max(groups.count(group) for group in set(groups)) > 250
    records, positives = np.array([((folds == k).sum(), positive[folds == k].sum()) for k in range(5)]).T
    assert np.ptp(records) <= 3
    assert np.ptp(positives) <= 2
    assert abs((folds == -1).sum() - 200) <= 3


def test_equal_groups_are_dealt_out_evenly() -> None:
    assert sizes(folds_of(60, 5)) == {0: 12, 1: 12, 2: 12, 3: 12, 4: 12}
    assert sizes(folds_of(100, 3, per_group=1, held_out=0.1)) == {-1: 10, 0: 30, 1: 30, 2: 30}


def test_a_split_is_a_function_of_its_seed_alone() -> None:
    first = folds_of(seed=3)
    assert folds_of(seed=3) == first
    assert folds_of(seed=4).folds != first.folds
    order = np.random.default_rng(0).permutation(60)
    ids, groups = ([values[row] for row in order] for values in (first.record_ids, first.groups))
    shuffled = make_folds(ids, groups, order % 2 == 0, np.ones(60, bool), 5, seed=3)
    assert dict(zip(shuffled.record_ids, shuffled.folds, strict=True)) == dict(
        zip(first.record_ids, first.folds, strict=True)
    )
    # lists that exist were made with these draws
    assert folds_of(12, 3, per_group=1).folds == (2, 2, 0, 1, 1, 0, 0, 1, 2, 0, 1, 2)


def test_records_without_a_label_are_held_out() -> None:
    labelled = np.arange(20) >= 5
    made = make_folds([*map(str, range(20))], [f"g{row // 2}" for row in range(20)], labelled, labelled, 3)
    assert made.folds[:5] == (-1,) * 5
    assert set(made.folds[5:]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_folds": 1}, "expected at least 2 folds, found 1"),
        ({"num_folds": 0}, "expected at least 2 folds, found 0"),
        ({"num_folds": 10**30}, f"expected at most 60 folds, one per record, found {10**30}; "),
        ({"num_records": 8}, "no group is left for fold 4: .* enough groups for 5 parts, found 4, .* 2 of 8 records"),
        ({"positive": 10**6, "num_records": 0}, r"found none among 0 records \(0 of them labelled\)"),
        ({"num_records": 10, "held_out": 0.1}, "no group is left for the held-out fraction of 0.1: .* fewer folds"),
        ({"num_records": 12, "held_out": 0.9}, "no group is left for fold 0: .* or a smaller --hold-out"),
        (
            {"held_out": 1e-6},
            "no group is left for the held-out fraction of 1e-06: .* ask for fewer folds or a larger --hold-out or",
        ),
    ],
)
def test_an_impossible_split_says_why(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        folds_of(**arguments)  # type: ignore[arg-type]


def test_a_split_without_times_advises_no_window() -> None:
    labelled = np.ones(2, bool)
    with pytest.raises(DataError, match=r"2 of 2 records; ask for fewer folds$"):
        make_folds(["a", "b"], ["g", "g"], labelled, labelled, 2, timed=False)


def test_no_positive_record_is_an_error() -> None:
    labelled = np.array([True, True, False])
    with pytest.raises(DataError, match=r"found none among 3 records \(2 of them labelled\)"):
        make_folds(["a", "b", "c"], ["g", "h", "i"], ~labelled, labelled, 2)


def test_a_large_split() -> None:
    rng = np.random.default_rng(0)
    tiles, times = [f"t{tile}" for tile in rng.integers(0, 6000, 20_000)], rng.uniform(0, 365 * 24 * HOUR, 20_000)
    groups = time_groups(tiles, times, 24)
    everything = np.ones(20_000, bool)
    made = make_folds([*map(str, range(20_000))], groups, rng.random(20_000) < 0.45, everything, 5, held_out=0.1)
    assert sizes(made) == {-1: 2000} | dict.fromkeys(range(5), 3600)


def test_a_list_of_other_records_is_refused() -> None:
    require_match(FIVE, ["e", "d", "c", "b", "a"], "x.csv")
    with pytest.raises(DataError) as caught:
        require_match(FIVE, ["a", "b", "c", *(f"n{number}" for number in range(7))], "x.csv")
    assert str(caught.value).splitlines() == [
        "x.csv names records that the dataset lacks: 2, such as d, e",
        "x.csv lacks records: 7, such as n0, n1, n2",
        "give the dataset of this list, or make it again: `contrails split DATA.h5 -o x.csv`",
    ]


def test_leaks_are_named_once() -> None:
    groups = {"a": "t-0", "b": "t-0", "c": "u-0", "d": "u-0", "e": "v-0"}
    assert list(leaks(FIVE, groups)) == ["group u-0 is spread over folds: c in fold 1, d in fold -1"]
    own = FileList(("a", "b", "c"), ("x", "x", "x"), (0, 1, 1))
    assert list(leaks(own, {"a": "t-0", "b": "t-1", "c": "t-2"})) == [
        "group x is spread over folds: a in fold 0, b in fold 1"
    ]
    assert list(leaks(own, {"a": "x", "b": "x", "c": "t-2"})) == [
        "group x is spread over folds: a in fold 0, b in fold 1"
    ]


def test_a_list_without_groups_or_records_without_a_label_do_not_leak() -> None:
    assert not list(leaks(FileList(("a", "b"), ("", ""), (0, 1)), {"a": "t-0", "b": "t-1"}))
    assert not list(leaks(FileList(("a", "b"), ("g", "g"), (0, -1)), {"a": "g"}))
