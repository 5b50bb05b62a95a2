"""Settings: what a TOML file may say, and one clear line for what it may not."""

import dataclasses
import textwrap

import pytest

from diffreg.cli.main import main
from diffreg.models import LUNetConfig
from diffreg.training.config import Config, load_config
from diffreg.training.printed import printed


@pytest.fixture
def write(tmp_path):
    def to_file(text, name="config.toml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to_file


def test_everything_has_a_default(write):
    assert load_config(write("")) == Config.from_dict({})


def test_a_file_with_all_sections(write, tmp_path):
    config = load_config(
        write(
            """
            [data]
            images = ["a.png", "/b.png"]
            slices = [1, 2]
            [normalization]
            lower = 1
            [augmentation]
            amplitude = 2
            flip_axes = 0
            [model]
            name = "lunet"
            widths = [4, 8]
            [objective]
            similarity = {ncc = 1, ssd = 0.2}
            weights = [60, 1, 30, 3]
            [optimizer]
            learning_rate = 2e-3
            [training]
            steps = 5
            out = "run"
            """
        )
    )
    assert config.data.images == (str(tmp_path / "a.png"), "/b.png")
    assert config.data.slices == (1, 2)
    assert config.normalization.lower == 1.0
    assert config.augmentation.amplitude == 2.0
    assert config.augmentation.flip_axes == (0,)
    assert config.model == LUNetConfig(widths=(4, 8))
    assert config.objective.similarity == {"ncc": 1.0, "ssd": 0.2}
    assert config.objective.weights == (60, 1, 30, 3)
    assert config.optimizer.learning_rate == 2e-3
    assert config.training.out == str(tmp_path / "run")


def test_the_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().training.steps = 3


def test_plain_containers_and_back(write):
    config = load_config(write("[model]\nwidths = [4, 8]"), ["data.slices=[1,2]"])
    plain = config.to_dict()
    assert (plain["model"]["name"], plain["model"]["widths"]) == ("lunet", [4, 8])
    assert "threshold" not in plain["objective"]
    assert Config.from_dict(plain) == config


def test_overrides_are_toml_or_bare_text(write, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    overrides = [
        "training.steps=7",
        "training.resume=true",
        "objective.similarity=pls",
        'objective.weights="paper"',
        "objective.threshold = 0.1",
        "data.slices=[3, 4]",
        "training.out=results",
        "data.images=2024",
    ]
    config = load_config(write("[training]\nsteps = 5\nseed = 2"), overrides)
    assert (config.training.steps, config.training.seed, config.training.resume) == (7, 2, True)
    assert (config.objective.similarity, config.objective.weights) == ("pls", "paper")
    assert config.objective.threshold == 0.1
    assert config.data.slices == (3, 4)
    assert config.training.out == str(tmp_path / "here" / "results")
    assert config.data.images == (str(tmp_path / "here" / "2024"),)


REFUSALS = {
    "section": ("[trainin]", r"no section \[trainin\]; the nearest is training"),
    "key": ("[training]\nstep = 3", r"no setting training\.step; the nearest is training\.steps"),
    "far key": ("[data]\nzzz = 3", r"no setting data\.zzz; known are images, slices"),
    "no section": ("training = 3", r"\[training\] must be a section of settings, got 3"),
    "text": ("[training]\nsteps = 'a'", r"training\.steps must be a whole number, got 'a'"),
    "part": ("[training]\nsteps = 1.5", r"training\.steps must be a whole number, got 1\.5"),
    "number": ("[training]\nresume = 1", r"training\.resume must be true or false, got 1"),
    "truth": ("[optimizer]\nlearning_rate = true", r"learning_rate must be a number, got True"),
    "list": (
        "[data]\nslices = ['a']",
        r"data\.slices must be a list of whole numbers, got \['a'\]",
    ),
    "short": ("[objective]\nweights = [1, 2]", "must be a text or a list of 4 numbers"),
    "kind": ("[objective]\nsimilarity = 3", "must be a text or a table of numbers, got 3"),
    "range": ("[training]\nsteps = 0", r"\[training\] steps must be at least 1, got 0"),
    "rate": ("[optimizer]\nlearning_rate = -1", "learning_rate must be a number > 0, got -1"),
    "percentiles": ("[normalization]\nlower = 100", "must be percentiles"),
    "axes": ("[augmentation]\nflip_axes = [3]", r"flip_axes must be some of 0, 1, 2, or none, got"),
    "model": ("[model]\nname = 'lunets'", "model.name must be one of lunet.*, got 'lunets'"),
    "4-D": ("[model]\ndimensions = 4", r"dimensions must be 2 \(images\) or 3 \(volumes\), got 4"),
    "broken": ("[training", "is not TOML"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_file_is_refused_in_words(write, name):
    text, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message) as found:
        load_config(write(text))
    assert "config.toml" in str(found.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=3", r"must be section\.key=value, got 'steps=3'"),
        ("training.steps", r"must be section\.key=value"),
        ("training.step=3", r"the nearest is training\.steps"),
        ("train.steps=3", "the nearest is training"),
        ("training.steps=many", r"training\.steps must be a whole number, got 'many'"),
    ],
)
def test_an_override_is_refused_in_words(write, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(""), [override])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.toml does not exist"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="is a folder"):
        load_config(tmp_path)


# where training.start is


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("first/last.pt", "{folder}/first/last.pt"),
        ("last.pt", "{folder}/last.pt"),
        ("./here", "{folder}/here"),
        ("here", "{folder}/here"),
        ("/elsewhere/last.pt", "/elsewhere/last.pt"),
        ("lunet-cardiac-mr", "lunet-cardiac-mr"),
        ("", ""),
    ],
)
def test_a_start_is_relative_to_the_file_that_names_it(
    write, tmp_path, monkeypatch, start, expected
):
    (tmp_path / "here").touch()
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "lunet-cardiac-mr").touch()
    path = write(f'[training]\nstart = "{start}"\nsteps = 3')
    monkeypatch.chdir(tmp_path / "away")
    for overrides in ([], ["training.steps=4"], ["training.out=there"]):
        found = load_config(path, overrides).training.start
        assert found == expected.format(folder=tmp_path)


def test_a_start_on_the_command_line_is_relative_to_the_working_folder(
    write, tmp_path, monkeypatch
):
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    path = write('[training]\nstart = "first/last.pt"')
    for start, expected in (
        ("second/last.pt", f"{tmp_path}/away/second/last.pt"),
        ("lunet-mr-ct", "lunet-mr-ct"),
        ('""', ""),
    ):
        assert load_config(path, [f"training.start={start}"]).training.start == expected


# what --print-config writes


@pytest.mark.parametrize(
    "text",
    [
        "",
        """
        [data]
        images = ["a b.png", 'c"\\\\ü.png']
        slices = [1, 2]
        [objective]
        similarity = {ncc = 1, "own.losses:nmi" = 0.2}
        weights = [60, 1, 30, 3]
        window = 7
        [optimizer]
        final_learning_rate = 1e-7
        [training]
        callbacks = ["own:WandB"]
        """,
        """
        [data]
        name = "own.data:Pairs"
        settings = {folder = "x", shape = [1, 2], more = {a = true}}
        [model]
        name = "own.nets:Net"
        width = 3
        deep = {"a b" = [0.5]}
        """,
        "[model]\nname = 'sn'\nintegrate = true",
    ],
)
def test_what_is_printed_is_read_as_the_same_settings(write, text):
    config = load_config(write(text), ["training.out=/run"])  # a path that is absolute
    assert load_config(write(printed(config), "printed.toml")) == config


def test_every_setting_is_printed_with_what_it_means():
    lines = printed(Config()).splitlines()
    assert max(map(len, lines)) <= 100
    keys = [line.removeprefix("# ").partition(" =")[0] for line in lines]
    for name, settings in vars(Config()).items():
        assert f"[{name}]" in lines
        for field in dataclasses.fields(settings):
            at = [k for k, key in enumerate(keys) if key == field.name and " =" in lines[k]]
            assert at and all(lines[k - 1].startswith("# ") for k in at), field.name
    assert "# final_learning_rate =" in lines


@pytest.mark.parametrize("name", ["lunet", "sn"])
def test_what_follows_from_other_settings_is_printed_in_a_comment(name, write):
    """So that it follows when these are changed in what was printed."""
    usual = write(printed(load_config(write(f"[model]\nname = '{name}'"))), "printed.toml")
    assert load_config(usual, ["model.dimensions=3"]).model.half_resolution
    own = write(f"[model]\nname = '{name}'\ndimensions = 3\nhalf_resolution = false")
    lines = printed(load_config(own)).splitlines()
    assert "half_resolution = false" in lines and "# final_learning_rate =" in lines


def test_keywords_of_ones_own_that_are_left_out_are_printed_in_comments(write, capsys):
    code = """
        from torch import nn
        class Net(nn.Module):
            def __init__(self, width, depth=3, name=None, *, scale=(1.0, 2.0), **more):
                super().__init__()
        class Pairs:
            def __init__(self, folder, count=10): ...
        """
    write(textwrap.dedent(code), "own_parts_printed.py")
    text = """
        [model]
        name = "own_parts_printed:Net"
        depth = 4
        [data]
        name = "own_parts_printed:Pairs"
        settings = {folder = "here"}
        """
    assert main(["train", str(write(text)), "--print-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    model = lines[lines.index("[model]") :]
    assert model[3:7] == ["depth = 4", "# width =", "# scale = [1.0, 2.0]", ""]  # name is taken
    data = lines.index('settings = {folder = "here"}')
    assert lines[data + 1 : data + 3] == ["# count = 10", ""]


def test_what_cannot_be_imported_is_printed_all_the_same(write):
    lines = printed(load_config(write("[model]\nname = 'no_such:Net'\nwidth = 3"))).splitlines()
    told = " ".join(line.removeprefix("# ") for line in lines[lines.index("width = 3") + 1 :])
    assert told.startswith("What else it takes is not known here: model.name = 'no_such:Net' can")


def test_the_command_line_prints_and_trains_not(write, capsys, tmp_path):
    assert main(["train", "--print-config"]) == 0
    usual = ["training.out=/run"]
    printed_ones = load_config(write(capsys.readouterr().out), usual)
    assert printed_ones == load_config(write("", "empty.toml"), usual)
    path = write("[training]\nsteps = 7")
    assert main(["train", str(path), "training.seed=3", "--print-config"]) == 0
    assert load_config(write(capsys.readouterr().out)).training.steps == 7
    assert main(["train"]) == 2
    assert "CONFIG is missing, a TOML file; --print-config writes one" in capsys.readouterr().err
