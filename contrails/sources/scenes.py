"""The layout `scenes`: scenes of any size and their masks, cut into tiles.

`ROOT/scenes/` and `ROOT/masks/` hold files with the same names. Patterns such as `train_{band}/{band}_{scene}.TIF`
describe other folders, and scenes with one file per band. `ROOT/filelists/{train,val,test}.csv`, if they exist, hold
names of scenes, one per line (they are no file lists of folds). All tiles of a scene are in its group, so that no fold
splits a scene; the options can put several scenes in one group.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np

from contrails.dataset.layout import Header, Values, read_options
from contrails.dataset.pack import Arrays, Plan, labelled_tests
from contrails.dataset.store import IGNORE, NOWHERE, Placement, Scene
from contrails.errors import DataError, names_in
from contrails.progress import bar
from contrails.sources.groups import USUAL as USUAL_GROUPS
from contrails.sources.groups import Grouping
from contrails.sources.masks import USUAL, Meanings, parse, read_classes, require_channels, said, table_of
from contrails.sources.radiometry import Span, packed_integers, without_alpha
from contrails.sources.rasters import (
    ENDINGS,
    Raster,
    bands_in_front,
    coordinate_system,
    describe,
    read,
)
from contrails.sources.scene_names import SUBSETS, find_files, read_filelists
from contrails.sources.spans import choose_values, read_span
from contrails.sources.tiles import OVERLAP, TILE, grid, packed, tile_name
from contrails.sources.walk import Found, some

_SPLITS = {"validation": "val", "test": "test"}
"""The list of scenes of each split; the split train packs the scenes of all lists."""

_SHOWN = 3

Files = Mapping[str, Mapping[str, Path]]
"""Files by scene and band."""


@dataclass(frozen=True)
class SceneOptions:
    """Options for finding and cutting scenes; see `contrails prepare --help`.

    Attributes:
        tile: side of a tile, in pixels.
        overlap: overlap of neighbouring tiles, in pixels.
        scenes: pattern of the scene files.
        masks: pattern of the masks; empty for prediction, which reads neither masks nor lists of scenes.
        bands: names of the bands; empty for the names in the files.
        mask_values: meanings of mask values; empty for the default ones.
        span: smallest and largest value to pack; None to keep the counts.
        grouping: rule for groups of scenes.
        target_name: what the masks show, or "".
    """

    tile: int = TILE
    overlap: int = OVERLAP
    scenes: str = "scenes/{scene}"
    masks: str = "masks/{scene}"
    bands: tuple[str, ...] = ()
    mask_values: Meanings = ()
    span: Span | None = None
    grouping: Grouping = USUAL_GROUPS
    target_name: str = ""

    def __str__(self) -> str:
        words = ["--layout=scenes", f"--tile={self.tile}", f"--overlap={self.overlap}", f"--scenes={self.scenes}"]
        words += [f"--masks={self.masks}", f"--mask-values={said(self.mask_values or USUAL)}"]
        words += [f"--bands={','.join(self.bands)}"] if self.bands else []
        words += [f"--range={self.span[0]!r},{self.span[1]!r}"] if self.span else []
        words += [f"--target-name={self.target_name}"] if self.target_name else []
        return shlex.join([*words, *self.grouping.options()])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the options in a header, without groups."""
        said = read_options(text)
        return cls(
            tile=int(said["tile"]),
            overlap=int(said["overlap"]),
            scenes=said["scenes"],
            masks=said["masks"],
            bands=tuple(said["bands"].split(",")) if "bands" in said else (),
            mask_values=parse(said["mask-values"]),
            span=read_span(said["range"]) if "range" in said else None,
            target_name=said.get("target-name", ""),
        )


@dataclass(frozen=True)
class TileRecord:
    """A tile: the files of its scene (one, or one per band), its mask and its location in the scene."""

    files: tuple[Raster, ...]
    mask: Raster | None
    placement: Placement
    mask_values: Meanings


@dataclass(frozen=True)
class _Scene:
    """A scene: its files, their combined metadata, its mask, and the list (train, val or test) that names it."""

    name: str
    files: tuple[Raster, ...]
    whole: Raster
    mask: Raster | None
    subset: str
    group: str = ""


def make_plan(root: Path, split: str, options: SceneOptions) -> Plan[TileRecord]:
    """Return the plan for the tiles of the scenes of a split, after checking scenes and masks.

    Raises:
        DataError: no scene; a scene without its mask or a band; files that differ in size, location, type or bands;
            mask values without a meaning; or a list of scenes with unknown names.
    """
    files, of_scenes = find_files(root, options.scenes, options.bands)
    masks, of_masks = find_files(root, options.masks, ()) if options.masks else ({}, Found())
    if not files:
        raise DataError(
            f"expected scenes as {options.scenes} in {root} (endings {', '.join(ENDINGS)}), found "
            f"{', '.join(sorted(path.name for path in root.glob('*'))[:8]) or 'nothing'}; give the folder that holds "
            "them, or give --scenes"
        )
    subsets = read_filelists(root / "filelists", files) if options.masks else {}
    wanted = _SPLITS.get(split) if _SPLITS.get(split) in subsets.values() else None
    names = [name for name in sorted(files) if not subsets or subsets.get(name) in ([wanted] if wanted else SUBSETS)]
    needs_mask = [name for name in names if split != "test" and subsets.get(name) != "test"]
    if lost := [name for name in needs_mask if name not in masks]:
        raise DataError(
            f"expected a mask of every scene ({options.masks} in {root}), found none for {len(lost)} of {len(names)}: "
            f"{', '.join(lost[:_SHOWN])}; add them, or prepare unlabelled scenes with --split test"
        )
    with bar("headers", len(names)) as advance:
        scenes = []
        for name in names:
            scenes.append(_describe(name, files[name], masks.get(name, {}).get(""), subsets.get(name, ""), options))
            advance(1)
    notes = _said_of_masks([scene.mask for scene in scenes if scene.mask is not None], options.mask_values)
    warnings = _left_out(files, masks, of_scenes, of_masks, options)
    if (left_out := len(files) - len(names)) and not wanted:
        warnings += (f"{left_out} of {len(files)} scenes are not on the lists of scenes and are left out",)
    warnings += labelled_tests(split, len(masks.keys() & set(names)), len(names), "scenes")
    if options.masks and split in _SPLITS and not wanted and (subsets or masks):
        lists = "the file lists name none" if subsets else "there are no file lists"
        warnings += (f"--split {split}: {lists}, so all {len(names)} scenes are packed, as --split train packs them",)
    learned = {scene.name for scene in scenes if scene.subset == "train"} or set(names)
    of_training: list[Raster] = []
    others: list[Raster] = []
    for scene in scenes:
        (of_training if scene.name in learned else others).extend(scene.files)
    choice = choose_values([scene.whole for scene in scenes], of_training, others, options.span)
    groups, said_of_groups = options.grouping.groups(*[{name: name for name in names}] * 2)
    scenes = [replace(scene, group=groups[scene.name]) for scene in scenes]
    header, records = _cut(scenes, split, replace(options, span=choice.span), choice.values)
    notes += choice.notes if split == "test" else (*choice.notes, said_of_groups)  # tests are not assigned to folds
    return Plan(str(root.resolve()), header, records, read_tile, warnings + choice.warnings, notes)


def read_tile(header: Header, record: TileRecord) -> tuple[Arrays, int]:
    """Return a tile's row of each array, and 1 if its scene is labelled, else 0.

    Raises:
        DataError: a file is damaged, or its mask has other values than expected.
    """
    place = record.placement
    window = (place.row, place.column, place.height, place.width)
    parts = [packed_integers(*read(each.path, window), each, header.values) for each in record.files]
    bands, valid = np.concatenate([part for part, _ in parts]), np.logical_and.reduce([data for _, data in parts])
    positive = None
    if record.mask is not None:
        classes = read_classes(record.mask, window, record.mask_values)
        positive, valid = classes == 1, valid & (classes != IGNORE)
    return packed(header, bands, valid, positive)


def _cut(
    scenes: Sequence[_Scene], split: str, options: SceneOptions, values: Values
) -> tuple[Header, tuple[TileRecord, ...]]:
    """Return the header of the file and the tiles of all scenes."""
    wholes, size = [scene.whole for scene in scenes], (options.tile, options.tile)
    tiles: list[tuple[_Scene, Placement]] = []
    for number, scene in enumerate(scenes):
        placements = grid(scene.whole.height, scene.whole.width, size, options.overlap, number)
        tiles += [(scene, placement) for placement in placements]
    header = Header(
        split=split,
        band_names=wholes[0].band_names,
        frames=(0,),
        size=size,
        with_marks=False,
        record_ids=tuple(tile_name(scene.name, placement) for scene, placement in tiles),
        groups=tuple(scene.group for scene, _ in tiles),
        timestamps=(np.nan,) * len(tiles),
        values=values,
        source="scenes and masks",
        options=str(options),
        scenes=tuple(
            Scene(
                *(each.name, each.whole.height, each.whole.width, each.whole.crs, each.whole.transform),
                *(each.subset, each.whole.control),
            )
            for each in scenes
        ),
        placements=tuple(placement for _, placement in tiles),
    )
    meanings = options.mask_values or USUAL
    return header, tuple(TileRecord(scene.files, scene.mask, placement, meanings) for scene, placement in tiles)


def _left_out(files: Files, masks: Files, of_scenes: Found, of_masks: Found, options: SceneOptions) -> tuple[str, ...]:
    """Return warnings about files beside scenes and masks that are neither."""
    used = set(chain.from_iterable(each.values() for each in (*files.values(), *masks.values())))
    names = ("paths", "skipped", "unknown")
    both = [dict.fromkeys([*getattr(of_scenes, name), *getattr(of_masks, name)]) for name in names]
    merged = [_without(each, used) for each in both]
    where = "--scenes and --masks say" if options.masks else "--scenes says"
    told = {
        f"left out, because they are not where {where} (move them there)": merged[0],
        "masks without a scene": [masks[name][""] for name in sorted(masks.keys() - files.keys())],
    }
    return Found(*merged).warnings() + tuple(f"{what}: {some(paths)}" for what, paths in told.items() if paths)


def _without(paths: Iterable[Path], used: Set[Path]) -> list[Path]:
    return [path for path in paths if path not in used]


def _said_of_masks(masks: Sequence[Raster], given: Meanings) -> tuple[str, ...]:
    if not masks:
        return ()
    rows = [
        f"  {value} -> {'ignore' if means == IGNORE else means}: {count:,} pixels"
        for value, means, count in table_of(masks, given)
    ]
    return (f"values of {len(masks)} masks:", *rows)


def _describe(name: str, files: Mapping[str, Path], mask: Path | None, subset: str, options: SceneOptions) -> _Scene:
    """Return the metadata of a scene after checking that its files have the same pixel grid."""
    rasters = {band: describe(path) for band, path in files.items()}
    first, *others = rasters.values()
    for other in others:
        _require_fit(first, other)
    if several := [other for other in others if _counts(other) != _counts(first)]:
        raise DataError(
            f"{several[0].path}: expected {_counts(first)} as in {first.path}, found {_counts(several[0])}; convert it"
        )
    if "" not in rasters:
        for raster in rasters.values():
            _require_bands(raster, raster.band_names[:1])
        names = tuple(rasters)
    else:
        names = options.bands or first.band_names
        _require_bands(first, names)
    whole = replace(
        first,
        band_names=names,
        scales=tuple(chain.from_iterable(raster.scales for raster in rasters.values())),
        offsets=tuple(chain.from_iterable(raster.offsets for raster in rasters.values())),
    )
    label = None if mask is None else describe(mask)
    if label is not None:
        require_channels(label)
        _require_fit(first, label)
    return _Scene(name, tuple(rasters.values()), whole, label, subset)


def _require_bands(raster: Raster, names: Sequence[str]) -> None:
    """Check that a file has as many bands as names."""
    if len(names) != len(raster.band_names):
        alpha = f", and an alpha channel ({without_alpha(raster)})" if raster.has_alpha else ""
        raise DataError(
            f"{raster.path}: expected {len(names)} bands ({names_in(names)}), found {len(raster.band_names)} "
            f"({names_in(raster.band_names)}){alpha}; name all bands with --bands, or remove the others from the file"
            f"{bands_in_front(raster)}"
        )


def _counts(raster: Raster) -> str:
    zero = " where zero is white" if raster.zero_is_white else ""
    return f"{raster.bits} bits of {raster.dtype} in {raster.units or 'no unit'}{zero}"


def _require_fit(scene: Raster, other: Raster) -> None:
    """Check that a file, such as a mask, has the same pixel grid as a scene."""
    if (scene.height, scene.width) != (other.height, other.width):
        raise DataError(
            f"{other.path}: expected {scene.height} x {scene.width} pixels as in {scene.path}, found {other.height} x "
            f"{other.width}: one of them was cropped, resized or rotated; bring both to one grid, for example with "
            "`gdalwarp`"
        )
    placed = scene.transform != NOWHERE and other.transform != NOWHERE
    pixel = max(abs(number) for number in (scene.transform[0], scene.transform[1]))
    apart = np.abs(np.subtract(scene.transform, other.transform))
    if placed and (apart[[2, 5]].max() > pixel / 2 or apart[[0, 1, 3, 4]].max() > 1e-3 * pixel):
        raise DataError(
            f"{other.path}: expected the location of {scene.path} (transform {_numbers(scene)}), found the transform "
            f"{_numbers(other)}; bring it onto the grid of the scene with `gdalwarp`"
        )
    systems = [coordinate_system(each.crs) if each.crs else "" for each in (scene, other)]
    if (all(systems) and systems[0] != systems[1]) or (scene.control and other.control not in ("", scene.control)):
        raise DataError(
            f"{other.path}: expected the coordinate system and control points of {scene.path} ({systems[0]}), found "
            f"others ({systems[1]}); bring it onto the grid of the scene with `gdalwarp`"
        )


def _numbers(raster: Raster) -> str:
    return ", ".join(f"{number:g}" for number in raster.transform)
