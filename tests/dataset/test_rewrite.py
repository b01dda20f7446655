"""Files that another program wrote anew: refused with a command that, typed as it stands, gives the file back."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from contrails.cli.main import cli
from contrails.dataset.rewrite import rewrite
from contrails.dataset.store import open_dataset
from contrails.errors import DataError

Change = Callable[[h5py.File], None]


def _stored(name: str, **properties: Any) -> Change:
    """Return what stores an array in another way."""

    def change(file: h5py.File) -> None:
        values, attributes = file[name][:], {k: v for k, v in file[name].attrs.items() if k != "DIMENSION_LIST"}
        del file[name]
        file.create_dataset(name, data=values.astype(properties.pop("dtype", values.dtype)), **properties)
        file[name].attrs.update(attributes)

    return change


def _linked(name: str) -> Change:
    def change(file: h5py.File) -> None:
        other = Path(file.filename).with_name("other.h5")
        with h5py.File(other, "a") as target:
            file.copy(name, target, name)
        del file[name]
        file[name] = h5py.ExternalLink(other.name, f"/{name}")

    return change


def _virtual(file: h5py.File) -> None:
    _linked("bands")(file)
    source = h5py.VirtualSource(file["bands"])
    layout, attributes = h5py.VirtualLayout(source.shape, source.dtype), dict(file["bands"].attrs)
    layout[:] = h5py.VirtualSource("other.h5", "bands", source.shape)
    del file["bands"]
    file.create_virtual_dataset("bands", layout)
    file["bands"].attrs.update({k: v for k, v in attributes.items() if k != "DIMENSION_LIST"})


def _elsewhere(file: h5py.File) -> None:
    values, attributes = file["votes"][:], dict(file["votes"].attrs)
    raw = Path(file.filename).with_name("votes.raw")
    del file["votes"]
    file.create_dataset("votes", values.shape, values.dtype, external=[(str(raw), 0, values.nbytes)])
    file["votes"][...] = values
    file["votes"].attrs.update({k: v for k, v in attributes.items() if k != "DIMENSION_LIST"})


def _as_netcdf(file: h5py.File) -> None:
    """Write attributes as the netCDF library does: text as bytes, a number as a list of one."""
    _stored("bands", compression="gzip")(file)
    for owner in (file, file["bands"], file["votes"]):
        for name, value in dict(owner.attrs).items():
            if isinstance(value, str):
                owner.attrs[name] = np.bytes_(value)
            elif np.ndim(value) == 0 and isinstance(value, np.number):
                owner.attrs[name] = np.array([value])
    file.attrs["frames"] = file.attrs["frames"][0]
    file.attrs["_NCProperties"] = "version=2"
    del file["digests"]


@pytest.fixture
def path(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_data / "train.h5", tmp_path / "a file.h5"))


def change(path: Path, how: Change) -> None:
    with h5py.File(path, "r+") as file:
        how(file)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (_stored("votes", chunks=(1, 8, 8)), "/votes contiguous and little-endian, found it chunked"),
        (_stored("bands", compression="gzip"), "/bands contiguous and little-endian, found it compressed or filtered"),
        (_stored("marks", dtype=">u2"), "/marks contiguous and little-endian, found it big-endian"),
        (_linked("bands"), "/bands in the file itself, found a link to other.h5"),
        (_linked("record_id"), "/record_id in the file itself, found a link to other.h5"),
        (_linked("digests/bands"), "/digests/bands in the file itself, found a link to other.h5"),
        (_virtual, "/bands contiguous and little-endian, found it virtual, made of other files"),
        (_elsewhere, "/votes contiguous and little-endian, found it kept in another file"),
        (lambda file: file["digests"].pop("votes"), "expected the digests of votes"),
        (_as_netcdf, "/bands contiguous and little-endian, found it compressed or filtered"),
    ],
)
def test_what_is_stored_otherwise_is_refused_and_repaired(
    path: Path, tiny_data: Path, how: Change, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(path, how)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(path)
    (command,) = re.findall("repair the file: `contrails (.*)`", str(caught.value))
    assert shlex.split(command) == ["data", "join", str(path), "-o", str(path.with_name("a file-repaired.h5"))]
    cli(shlex.split(command), standalone_mode=False)
    repaired = path.with_name("a file-repaired.h5")
    assert repaired.read_bytes() == (tiny_data / "train.h5").read_bytes()
    assert "warning" not in capsys.readouterr().err
    cli(shlex.split(command), standalone_mode=False)
    assert "complete already: nothing to do" in capsys.readouterr().out
    assert not list(path.parent.glob(".*"))


def test_rows_that_were_changed_are_named_and_kept(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(path, "r+") as file:
        file["votes"][3, :5] = 1
        file.attrs["pseudo"] = "{}"
    new = path.with_name("new.h5")
    cli(["data", "join", str(path), "-o", str(new)], standalone_mode=False)
    assert f"warning: 1 of 12 records of {path} do not match their digests (1003)" in capsys.readouterr().err
    assert (open_dataset(new).votes[3, :5] == 1).all()
    cli(["data", "verify", str(new)], standalone_mode=False)
    with h5py.File(new) as file:
        assert file.attrs["pseudo"] == "{}"


def test_a_file_that_is_there_is_read_before_it_counts_as_complete(path: Path) -> None:
    new = path.with_name("new.h5")
    rewrite(path, new)
    with h5py.File(new, "r+") as file:
        file["bands"][3, 0, 0, 5, 5] += 1
    with pytest.raises(DataError, match=r"new.h5 is damaged; remove it, .*\nrecord 1003: /bands is not what"):
        rewrite(path, new)


@pytest.mark.parametrize("how", [_linked("bands"), _virtual, _elsewhere])
def test_another_file_that_is_not_there_is_named(path: Path, how: Change) -> None:
    change(path, how)
    for other in ("other.h5", "votes.raw"):
        path.with_name(other).unlink(missing_ok=True)
    with pytest.raises(
        DataError, match=r"/(bands|votes) (is a link to|in) \S+, (which does not exist|found no such file); put that"
    ):
        rewrite(path, path.with_name("new.h5"))
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def _of_other(path: Path, keep: Change) -> None:
    """Make /bands virtual, and change the file that it is made of."""
    change(path, _virtual)
    change(path.with_name("other.h5"), keep)


def _half(file: h5py.File) -> None:
    half = file["bands"][:6]
    del file["bands"]
    file["bands"] = half


def _half_covered(path: Path) -> None:
    _of_other(path, lambda file: None)
    with h5py.File(path, "r+") as file:
        layout, attributes = h5py.VirtualLayout(file["bands"].shape, file["bands"].dtype), dict(file["bands"].attrs)
        layout[:6] = h5py.VirtualSource("other.h5", "bands", layout.shape)[:6]
        del file["bands"]
        file.create_virtual_dataset("bands", layout).attrs.update(attributes)


def _chunks_missing(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        values, attributes = file["bands"][:], dict(file["bands"].attrs)
        del file["bands"]
        bands = file.create_dataset("bands", values.shape, values.dtype, chunks=(1, *values.shape[1:]))
        bands[:6] = values[:6]
        bands.attrs.update({name: value for name, value in attributes.items() if name != "DIMENSION_LIST"})


def _cut_elsewhere(path: Path) -> None:
    change(path, _elsewhere)
    raw = path.with_name("votes.raw")
    raw.write_bytes(raw.read_bytes()[:-100])


def _many_votes(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["votes"][3, 0, 0] = 200


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            lambda path: _of_other(path, lambda file: file.move("bands", "x")),
            "expected the array bands of /bands in .*, found none",
        ),
        (lambda path: _of_other(path, _half), r"expected a larger array bands for /bands in \S+/other.h5, found \(6, "),
        (_half_covered, "expected other files with all [0-9,]+ values of /bands, found [0-9,]+"),
        (_chunks_missing, "expected 12 chunks of /bands, found 6"),
        (_cut_elsewhere, r"expected \d+ bytes of /votes in \S*votes.raw, found \d+; put that file back"),
        (_many_votes, "record 1003: expected at most [0-9]+ votes, one per annotator, found 200"),
    ],
)
def test_rows_that_were_never_written_are_not_made_up(path: Path, how: Callable[[Path], None], message: str) -> None:
    how(path)
    with pytest.raises(DataError, match=message):
        rewrite(path, path.with_name("new.h5"))
    assert not path.with_name("new.h5").exists()


def test_a_shard_stays_one(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in (1, 2):
        cli(["prepare", str(tiny_data / "raw"), str(tmp_path / "d.h5"), f"--shard={index}/2"], standalone_mode=False)
    compressed = tmp_path / "compressed.h5"
    (tmp_path / "d-1of2.h5").rename(compressed)
    change(compressed, _stored("bands", compression="gzip"))
    for out, shard in (("other.h5", "compressed-1of2.h5"), ("d-1of2.h5", "d-1of2.h5")):
        capsys.readouterr()
        cli(["data", "join", str(compressed), "-o", str(tmp_path / out)], standalone_mode=False)
        whole = tmp_path / shard.replace("-1of2", "")
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"warning: {tmp_path / out} holds only shard 1 of 2; for the file of all records name it "
            f"{tmp_path / shard}, put the other shards beside it, and run `contrails data join {whole}`"
        )
    cli(["data", "join", str(tmp_path / "d.h5")], standalone_mode=False)
    assert (tmp_path / "d.h5").read_bytes() == (tiny_data / "train.h5").read_bytes()


def test_names_that_are_taken_are_refused(path: Path, tiny_data: Path) -> None:
    with pytest.raises(DataError, match=r"is the input file, which is never overwritten; give another name with"):
        rewrite(path, path)
    other = shutil.copy(tiny_data / "test.h5", path.with_name("test.h5"))
    with pytest.raises(DataError, match=r"test.h5 exists and differs from \S+a file.h5"):
        rewrite(path, Path(other))
    assert Path(other).read_bytes() == (tiny_data / "test.h5").read_bytes()


def test_tiles_without_their_places_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["options"] = "--layout=scenes --tile=32"
    with pytest.raises(DataError, match=r"expected /scene and /placement, which locate its records"):
        rewrite(path, path.with_name("new.h5"))
