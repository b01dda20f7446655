"""Recipes: read, changed by overrides, written again; whatever is wrong is named with what was meant."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from contrails.errors import RecipeError, StorageError
from contrails.files import read_toml
from contrails.recipe.reading import keys, parse
from contrails.recipe.recipe import Recipe, load_recipe, override, to_toml
from contrails.recipe.train import TrainSection
from contrails.runs.config import ComputeSection, DataIdentity, RunConfig

DATA = {"dataset": "train.h5", "filelist": "five.csv"}
SMALLEST = '[data]\ndataset = "train.h5"\nfilelist = "five.csv"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(SMALLEST)
    return path


def problem(values: dict[str, Any], section: type[Recipe] | type[RunConfig] = Recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(section, values, "r.toml")
    text = str(caught.value)
    assert text.startswith("r.toml: ")
    return text.removeprefix("r.toml: ")


def test_the_shipped_recipes_are_valid() -> None:
    jobs = Path(__file__).parents[2] / "jobs"
    recipes = sorted(jobs.glob("*.toml"))
    assert recipes
    for recipe in recipes:
        load_recipe(recipe)


def test_defaults_are_filled_in(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.data.dataset == Path("train.h5")
    assert (recipe.train.epochs, recipe.data.frames, recipe.data.size) == (20, (), None)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=3e-4", "train.lr", 3e-4),
        (" train.lr = 3e-4 ", "train.lr", 3e-4),
        ("seed=7", "seed", 7),
        ("train.deterministic=false", "train.deterministic", False),
        ("model.encoder=resnet34", "model.encoder", "resnet34"),
        ('model.encoder="resnet34"', "model.encoder", "resnet34"),
        ("data.frames=[0, 4]", "data.frames", (0, 4)),
        ("data.dataset=/data/a=b c.h5", "data.dataset", Path("/data/a=b c.h5")),
        ("data.size=512", "data.size", 512),
    ],
)
def test_an_override_changes_one_key(override: str, key: str, value: object, path: Path) -> None:
    table, _, name = key.rpartition(".")
    recipe = load_recipe(path, [override])
    section = getattr(recipe, table) if table else recipe
    assert getattr(section, name) == value
    before = load_recipe(path).model_dump()
    (before[table] if table else before)[name] = value
    assert recipe.model_dump() == before


def test_the_last_override_wins(path: Path) -> None:
    assert load_recipe(path, ["train.lr=1", "train.lr=2"]).train.lr == 2


def test_an_override_without_a_value_goes_back_to_the_default(path: Path) -> None:
    recipe = load_recipe(path, ["train.lr=1", "model.pretrained=default"])
    assert override(recipe, ["model.pretrained="]).model.pretrained is None
    assert override(recipe, ["train.lr ="]).train.lr == TrainSection().lr
    with pytest.raises(RecipeError, match=r"data\.dataset is missing"):
        override(recipe, ["data.dataset="])
    with pytest.raises(RecipeError, match=r"unknown key model\.pretraind"):
        override(recipe, ["model.pretraind="])


@pytest.mark.parametrize("override", ["train.lr", "=3", " =3", ""])
def test_an_override_is_a_key_and_a_value(override: str, path: Path) -> None:
    with pytest.raises(RecipeError, match=f"override '{override}': expected key=value, such as train.lr=3e-4"):
        load_recipe(path, [override])


def test_an_odd_override_is_told_as_any_other(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"-o train\.\(=3: unknown key train\.\(; Known: .*") as caught:
        load_recipe(path, ["train.(=3", "train.lr=x"])
    assert "-o train.lr=x: train.lr = 'x'" in str(caught.value)
    for text in ("0.1\nseed = 7", "9" * 5000, "[" * 5000):
        with pytest.raises(
            RecipeError, match=r"(?s)^-o .{1,300}(unable to parse string as a|should be a finite) number$"
        ):
            load_recipe(path, [f"train.lr={text}"])


@pytest.mark.parametrize("text", [f"train.batch_size={10**30}", f"data.frames=[1, {-(10**30)}]"])
def test_numbers_that_no_file_holds_are_refused(text: str, path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"(batch_size|frames): expected a number of at most 9007199.*, found one of 3[12] digits"
    ):
        load_recipe(path, [text])


def test_an_override_below_a_value_is_refused(path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"data.dataset.x=1': expected a table dataset, found a value; did you mean 'data.dataset'"
    ):
        load_recipe(path, ["data.dataset.x=1"])


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learning_rate", "unknown key train.learning_rate; did you mean 'train.lr'?"),
        ("train.lrr", "unknown key train.lrr; did you mean 'lr'? Known: accumulate, "),
        ("train.epoch", "unknown key train.epoch; did you mean 'epochs'? Known: "),
        ("train.gradient_clip", "unknown key train.gradient_clip; did you mean 'grad_clip'? Known: "),
        ("lr", "unknown key lr; did you mean 'train.lr'?"),
        ("model.size", "unknown key model.size; did you mean 'data.size'?"),
        ("model.backbone", "unknown key model.backbone; Known: activation, "),
        ("trian.lr", "unknown key trian; did you mean 'train'? Known: augment, data, init, loss, "),
        ("optim.lr", "unknown key optim; Known: augment, data, init, loss, "),
        ("sed", "unknown key sed; did you mean 'seed'? Known: "),
        ("train..lr", "unknown key train.; Known: accumulate, "),
    ],
)
def test_an_unknown_key_names_what_was_meant(key: str, meant: str, path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"{key}=3"])
    assert str(caught.value).startswith(f"-o {key}=3: {meant}")
    assert caught.value.exit_code == 3


def test_a_problem_is_told_of_the_override_or_the_file_that_has_it(path: Path) -> None:
    path.write_text(f"{SMALLEST}[train]\nepochs = 0\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["train.lr=x", "train.momentum=0.5", "model.encoder=cnn3d", "seed=-1"])
    assert [line.split(": ")[:2] for line in str(caught.value).splitlines()] == [
        ["-o seed=-1", "seed = -1"],
        ["-o model.encoder=cnn3d", "model"],
        [str(path), "train.epochs = 0"],
        ["-o train.lr=x", "train.lr = 'x'"],
    ]
    path.write_text(f"{SMALLEST}[model]\ntask = 'classify'\nheads = 2\n")
    with pytest.raises(RecipeError, match=f"^{path}: model: task = 'classify' has no mask"):
        load_recipe(path, ["model.encoder=resnet34"])


@pytest.mark.parametrize(("value", "meant"), [("4", "[4]"), ("0,4", "[0,4]")])
def test_a_list_is_written_as_one(value: str, meant: str, path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"data.frames={value}"])
    assert f"-o data.frames={value}: data.frames = " in str(caught.value)
    assert str(caught.value).endswith(f": expected a list, such as {meant}")
    with pytest.raises(RecipeError, match=r"data.composite = 3: expected a list, such as \[3\]"):
        load_recipe(path, ["data.composite=3"])


def test_an_unknown_key_deep_in_a_run_is_named_too() -> None:
    text = problem(
        {"recipe": {"data": DATA, "trian": {"lr": 1}}, "compute": {"devise": "cpu", "num_threads": 1}}, RunConfig
    )
    assert "unknown key recipe.trian; did you mean 'train'? Known: augment, " in text
    assert "unknown key compute.devise; did you mean 'device'? Known: device, " in text
    assert "compute.device is missing; add to the file, or give -o compute.device=VALUE" in text


def test_every_problem_is_told_at_once() -> None:
    text = problem({"data": DATA | {"size": 1}, "train": {"epochs": 0, "lr": "x"}})
    assert [line.split(" = ")[0].removeprefix("r.toml: ") for line in text.splitlines()] == [
        "data.size",
        "train.epochs",
        "train.lr",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "data.dataset and data.filelist are missing; add to the file, or give -o data.dataset=VALUE"),
        ({"data": {"dataset": "x"}}, "data.filelist is missing; add to the file, or give -o data.filelist=VALUE"),
        ({"data": 3}, "data = 3: expected a table, [data]"),
        ({"data": DATA | {"pseudo": [{"folder": "x"}]}}, "data.pseudo.0.run is missing; add it to its table"),
        (
            {"data": DATA | {"pseudo": [{"folder": "x", "run": "y", "wieght": 1}]}},
            "unknown key data.pseudo.0.wieght; did you mean 'weight'? Known: folder, run, weight",
        ),
        ({"data": DATA | {"frames": [0, "x"]}}, "data.frames.1 = 'x': Input should be a valid integer"),
        ({"data": DATA | {"size": "big"}}, "data.size = 'big': Input should be a valid integer"),
        ({"data": DATA, "loss": {"target": "sof"}}, "loss.target = 'sof': Input should be 'soft' or 'hard'"),
        ({"data": DATA, "loss": {"terms": ["bec"]}}, "loss.terms.0: name = 'bec'; did you mean 'bce'? Known: bce, "),
        ({"data": DATA, "loss": {"terms": [{"weight": 1}]}}, "loss.terms.0 has no name; Known: bce, boundary, "),
        ({"data": DATA, "loss": {"terms": [3]}}, "loss.terms.0 = 3: expected a name or a table; Known: bce, "),
        ({"data": DATA, "loss": {"terms": "bce"}}, "loss.terms = 'bce': expected a list, such as [bce]"),
        ({"data": DATA, "loss": {"terms": []}}, 'loss: terms: expected at least one, such as ["bce"]'),
        (
            {"data": DATA, "loss": {"terms": ["bce", {"name": "dice", "gamma": 2}]}},
            "unknown key loss.terms.1.dice.gamma; did you mean 'loss.terms[focal].gamma'?",
        ),
        (
            {"data": DATA, "loss": {"terms": [{"name": "dice", "smooht": 2}]}},
            "unknown key loss.terms.0.dice.smooht; did you mean 'smooth'? Known: head, name, over, smooth, weight",
        ),
        (
            {"data": DATA, "loss": {"terms": [{"name": "bce", "pos_weight": 0}]}},
            'loss.terms.0.bce: pos_weight = 0.0, expected a number above 0, or "balanced"',
        ),
        (
            {"data": DATA, "loss": {"terms": [{"name": "bce", "weight": 0}]}},
            "loss.terms.0.bce.weight = 0: Input",
        ),
        ({"data": DATA, "loss": {"pos_weight": 3}}, "unknown key loss.pos_weight; did you mean 'loss.terms[bce].pos_w"),
        (
            {"data": DATA, "loss": {"terms": ["softmax_ce"]}},
            "loss.terms: softmax_ce needs two logits; set",
        ),
        ({"data": DATA, "loss": {"normalise": True}}, "loss: normalise needs at least two terms, found one"),
        (
            {"data": DATA, "augment": {"mixup": {"probability": 1}}, "train": {"batch_size": 3, "accumulate": 2}},
            "augment.mixup combines samples of a batch: expected at least train.batch_size = 4 ",
        ),
        (
            {"data": DATA | {"frames": [4]}, "augment": {"time_reversal": {"probability": 0.5}}},
            "augment.time_reversal needs several frames, found data.frames = [4]; give some, such as",
        ),
        ({"data": DATA, "augment": {"mixpu": {}}}, "unknown key augment.mixpu; did you mean 'mixup'? Known: affine, "),
        ({"data": DATA, "augment": {"blur": {"sigma": 1}}}, "unknown key augment.blur.sigma; did you mean 'sigma_px'?"),
        ({"data": DATA, "augment": {"blur": 0.5}}, "augment.blur = 0.5: expected a table, [augment.blur]"),
        ({"data": DATA, "train": {"lr": float("inf")}}, "train.lr = inf: Input should be a finite number"),
        ({"data": DATA, "train": {"lr": float("nan")}}, "train.lr = nan: Input should be a finite number"),
        ({"data": DATA, "train": {"epochs": 1.5}}, "train.epochs = 1.5: Input should be a valid integer"),
        ({"data": DATA | {"crop_positive": 0.5}}, "data: crop_positive = 0.5 needs a crop, such as crop = 128"),
        (
            {"data": DATA, "train": {"positive_share": 0.02}},
            "train: positive_share = 0.02 of batch_size = 16 rounds to 0 positive records per batch; expected at least",
        ),
        (
            {"data": DATA, "train": {"positive_share": 0.9, "batch_size": 4}},
            "train: positive_share = 0.9 of batch_size = 4 rounds to 4 positive records per batch; expected at least",
        ),
        (
            {"data": DATA, "model": {"temporal": {"merge": "conv3d", "levels": [5]}, "encoder_depth": 4}},
            "model: temporal.levels: expected at most encoder_depth = 4, found 5",
        ),
    ],
)
def test_an_impossible_value_is_named(values: dict[str, Any], message: str) -> None:
    assert problem(values).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.schedule=one_cycle", "train.warmup_epochs=1"],
            r"warmup_epochs = 1.0: expected no warm-up with one_cycle, .*; leave warmup_epochs out, .*train.warmup_e",
        ),
        (["train.schedule=one_cycle", "train.warmup_steps=9"], "warmup_steps = 9: expected no warm-up with one_cycle"),
        (["train.warmup_epochs=3", "train.warmup_steps=9"], "warmup_epochs and warmup_steps exclude each other"),
        (
            ["train.warmup_epochs=2.5", "train.epochs=2"],
            r"warmup_epochs = 2.5 is longer than the training \(epochs = 2\), which would never reach lr; lower",
        ),
        (["train.warmup_steps=9", "train.steps=8"], r"warmup_steps = 9 is longer than the training \(steps = 8\)"),
    ],
)
def test_a_warm_up_that_cannot_be_meant_is_refused_unless_it_is_frozen(
    overrides: list[str], message: str, path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, overrides)
    train = dict(override.removeprefix("train.").split("=") for override in overrides)
    frozen = parse(Recipe, {"data": DATA, "train": train}, "run.toml")
    assert parse(Recipe, tomllib.loads(to_toml(frozen)), "run.toml") == frozen


@pytest.mark.parametrize("word", ["off", "none", "false", "None", '""'])
@pytest.mark.parametrize(
    ("key", "meaning"),
    [("model.pretrained", "random weights"), ("data.exclude", "no such list"), ("data.size", "the size of the records"),
     ("train.positive_share", "not controlled"), ("init.run", "random weights"),
     ("model.stem_stride", "its usual stride")],
)  # fmt: skip
def test_a_word_for_nothing_is_refused_with_what_empty_means(word: str, key: str, meaning: str, path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"{key}={word}"])
    text = str(caught.value)
    assert text.startswith(f"-o {key}={word}: {key} = ")
    assert text.endswith(f"which means {meaning}; to leave it empty, remove the line from the file, or give -o {key}=")
    load_recipe(path, [f"{key}={word}", f"{key}="])


def test_a_run_that_was_frozen_with_a_warm_up_of_one_epoch_is_of_the_same_recipe(path: Path) -> None:
    frozen = parse(Recipe, {"data": DATA, "train": {"warmup_epochs": 1.0}}, "run.toml")
    assert frozen == load_recipe(path)
    assert override(frozen, ["train.schedule=one_cycle"]).train.warmup_epochs is None


def test_a_file_that_is_no_recipe(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"expected a recipe at .*none.toml, found no such file"):
        load_recipe(path.with_name("none.toml"))
    with pytest.raises(RecipeError, match=r"expected a recipe at .*; give the path of a TOML file"):
        load_recipe(path.parent)
    with pytest.raises(StorageError, match=r"cannot read .*: Not a directory"):
        load_recipe(path / "x.toml")
    for content in (b"lr: 3", b"\xff\xfe", b"[data]\n[data]\n", b"x = " + b"[" * 9999, b"x = " + b"9" * 9999):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=f"^{path} is not TOML: "):
            load_recipe(path)


def test_a_byte_order_mark_and_windows_lines_do_no_harm(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())
    assert load_recipe(path).data.filelist == Path("five.csv")


def test_what_is_written_is_read(path: Path) -> None:
    terms = 'loss.terms=["bce", {name="dice", weight=0.2, over="record"}]'
    recipe = load_recipe(path, ["data.frames=[3,4]", "data.size=512", terms, "train.lr=0.1", 'model.encoder="a\\"b"'])
    assert [(term.name, term.weight) for term in recipe.loss.terms] == [("bce", 1), ("dice", 0.2)]
    config = RunConfig(
        recipe=recipe,
        compute=ComputeSection(device="cuda", num_threads=4),
        data=DataIdentity(dataset="ab", filelist="cd", num_folds=5),
        site={"name": "local", "folds_at_a_time": 2},
        code="ef",
    )
    for section, value in ((Recipe, recipe), (RunConfig, config)):
        path.write_text(to_toml(value))
        assert parse(section, read_toml(path, "x"), "x") == value
    path.write_text(to_toml(recipe, more={"a": 1}))
    assert read_toml(path, "x")["more"] == {"a": 1}


def test_a_recipe_cannot_change(path: Path) -> None:
    recipe = load_recipe(path)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.lr = 1.0  # type: ignore[misc]


def test_every_key_has_a_meaning() -> None:
    for section in (Recipe, RunConfig):
        described = dict(keys(section))
        assert len(described) > 5
        assert [name for name, field in described.items() if not field.description] == []
    assert [name for name, _ in keys(Recipe)][:3] == ["seed", "data.dataset", "data.filelist"]
    assert "recipe.train.lr" in dict(keys(RunConfig))


def test_of_two_lengths_only_the_one_that_holds_is_shown() -> None:
    def read(**train: int) -> Recipe:
        return parse(Recipe, {"data": DATA, "train": train}, "the recipe")

    assert (read(steps=37).train.epochs, read(steps=37, epochs=3).train.epochs) == (None, None)
    assert read(steps=37, epochs=3) == read(steps=37)  # also of what was frozen with both
    assert "epochs" not in to_toml(read(steps=37, epochs=3).train).replace("_epochs", "")
    assert override(read(steps=37), ["train.steps="]).train.epochs == 20
    with pytest.raises(RecipeError, match=r"train.epochs = 0: Input should be greater than or equal to 1"):
        read(steps=37, epochs=0)
