"""`contrails recipe`: the schema names every key, `show` prints a recipe that can be used in its place."""

import json
from pathlib import Path

import pytest

from contrails.cli.main import cli, main
from contrails.errors import RecipeError
from contrails.recipe.reading import keys
from contrails.recipe.recipe import Recipe, load_recipe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('[data]\ndataset = "train.h5"\nfilelist = "five.csv"\n[train]\nepochs = 3\n')
    return path


def run(*arguments: str | Path) -> None:
    cli(["recipe", *(str(argument) for argument in arguments)], standalone_mode=False)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_schema_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    run("schema")
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width


def test_the_schema_says_type_range_default_and_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    run("schema")
    lines = capsys.readouterr().out.splitlines()
    table = {}
    for head, meaning in zip(lines[::2], lines[1::2], strict=True):
        name, _, what = head.partition("  ")
        table[name] = (what, meaning.strip())
    assert list(table) == [name for name, _ in keys(Recipe)]
    assert table["train.lr"] == ("float > 0, default 0.001", "peak learning rate")
    assert table["model.encoder_depth"] == ("int >= 3, <= 5, default 5", "number of encoder stages used")
    assert table["data.dataset"][0] == "Path, required"
    assert table["data.exclude"][0] == "Path | none, default none"
    assert table["data.frames"][0] == "tuple[int, ...], default []"
    assert table["data.size"][0] == "int | none >= 32, default none"
    assert table["loss.target"][0] == '"soft" | "hard", default "soft"'
    assert table["train.deterministic"][0] == "bool, default true"
    assert all(row[-1] for row in table.values())


def test_the_schema_as_json_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    run("schema", "--json")
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["data"]
    assert schema["$defs"]["TrainSection"]["properties"]["lr"]["exclusiveMinimum"] == 0


def test_show_prints_a_recipe_with_its_defaults(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("show", path, "-o", "train.lr=3e-4", "-o", "data.size=512")
    text = capsys.readouterr().out
    assert "lr = 0.0003" in text
    shown = path.with_name("shown.toml")
    shown.write_text(text)
    assert load_recipe(shown) == load_recipe(path, ["train.lr=3e-4", "data.size=512"])
    run("show", shown)
    assert capsys.readouterr().out == text


def test_show_names_the_empty_keys(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("show", path, "-o", "data.size=512")
    lines = capsys.readouterr().out.splitlines()
    assert "# crop =" in lines
    assert "# positive_share =" in lines
    assert "# run =" in lines
    assert "size = 512" in lines
    tables = [line.strip("[]") for line in lines if line.startswith("[")]
    names = [name for name, _ in keys(Recipe) if "[" not in name]  # lists of tables stand in one line
    assert tables == list(dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.composite=["b14 * b15"]', "a product of bands is not linear"),
        ("data.composite=b14-b17", "expected bands of b01, "),
        ("data.composite=ashh", "did you mean 'ash'"),
        ("model.encoder=resnet19", "did you mean 'resnet18'"),
    ],
)
def test_show_checks_what_needs_no_data(path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run("show", path, "-o", override)


def test_show_knows_not_how_many_bands_a_dataset_has(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("show", path, "-o", "data.composite=bands", "-o", "data.normalise=imagenet")
    assert 'composite = "bands"' in capsys.readouterr().out


def test_show_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("show", path, "--json")
    assert json.loads(capsys.readouterr().out) == load_recipe(path).model_dump(mode="json")


def test_show_takes_the_default_recipe(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(SystemExit) as caught:
        cli(["recipe", "show"])
    assert caught.value.code == 2
    assert "expected jobs/default.toml in" in capsys.readouterr().err
    (path.parent / "jobs").mkdir()
    path.rename(path.parent / "jobs" / "default.toml")
    run("show")
    assert "epochs = 3" in capsys.readouterr().out


def test_show_refuses_what_is_wrong(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown key trian; did you mean 'train'\?"):
        run("show", path, "-o", "trian.lr=1")


def test_show_says_how_large_the_model_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("-o", "model.encoder=tu-test_resnet", "-o", "train.batch_size=4")
    merged = ("-o", "data.frames=[3,4]", "-o", "model.temporal.merge=conv3d")
    sizes = []
    for more in ((), ("-o", "train.accumulate=2"), merged):
        run("show", path, *small, *more, "--model", "--side", "64", "--json")
        sizes.append(json.loads(capsys.readouterr().out))
    plain, pieces, frames = sizes
    assert (plain["input"], frames["input"]) == ([3, 64, 64], [2, 3, 64, 64])
    assert plain["parameters"] == pieces["parameters"] < frames["parameters"]
    assert plain["macs"] == pieces["macs"] < frames["macs"]
    weights = 4 * 4 * plain["parameters"]
    assert plain["memory_bytes"] - weights == 2 * (pieces["memory_bytes"] - weights)
    run("show", path, *small, "--model", "--side", "64")
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert f"parameters: {plain['parameters'] / 1e6:.2f} M" in text


@pytest.mark.parametrize(
    ("overrides", "side"), [([], 32), (["data.crop=32"], 32), (["data.dataset=none.h5"], 256),
                            (["data.dataset=none.h5", "data.size=64"], 64)],
)  # fmt: skip
def test_show_takes_the_size_of_the_records_where_it_is_known(
    overrides: list[str], side: int, tiny_data: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [f"data.dataset={tiny_data / 'train.h5'}", "model.encoder=tu-test_resnet", "model.encoder_depth=3"]
    run("show", path, *(word for override in [*small, *overrides] for word in ("-o", override)), "--model", "--json")
    assert json.loads(capsys.readouterr().out)["input"] == [3, side, side]


def test_show_refuses_a_key_without_effect(path: Path) -> None:
    with pytest.raises(RecipeError, match="relu_features = 'add': expected features without a ReLU, resnet18 has one"):
        run("show", path, "-o", "model.relu_features=add")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.classes=0.5"], "loss.classes needs a head that the model does not have; set model.classifier = true"),
        (["loss.share=0.5"], "loss.share needs a head that the model does not have; set model.share = true"),
        (["loss.aux=0.5"], "loss.aux needs a head that the model does not have; set model.deep_supervision = 1"),
        (["loss.gate=true"], "loss.gate needs a head that the model does not have; set model.classifier = true"),
        (["model.heads=2", 'loss.terms=[{name="bce", head=2}]'], "bce has head = 2 and model.heads = 2; expected"),
        (["model.temporal.merge=conv3d"], "needs several frames"),
        (["train.freeze.encodr=1"], "did you mean 'encoder'"),
    ],
)
def test_show_refuses_losses_and_parts_of_what_a_model_lacks(
    path: Path,
    overrides: list[str],
    message: str,
    own_streams: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = [part for override in overrides for part in ("-o", override)]
    monkeypatch.setattr("sys.argv", ["contrails", "recipe", "show", str(path), *given])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == RecipeError.exit_code == 3
    assert message in capfd.readouterr().err
