"""The networks that come with the package."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from diffreg.cli.main import main
from diffreg.fields import fold_certificate
from diffreg.training.checkpoint import load_network
from diffreg.training.pretrained import (
    FOLDER,
    checkpoint_path,
    load_pretrained,
    model_card,
    pretrained_networks,
)

NAMES = pretrained_networks()
SLICES = "lunet-cardiac-mr"
DOCS = Path(__file__).parents[1] / "docs"


def test_what_comes_with_the_package():
    assert NAMES == ["lunet-any", "lunet-any-2d", "lunet-cardiac-mr", "lunet-mr-ct"]
    for name in NAMES:
        assert (FOLDER / f"{name}.pt").stat().st_size < 1e6


def section(card, name):
    assert f"\n## {name}\n" in card
    return card.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def tables(text):
    """Of each its head and its rows, as lists of cells."""
    found = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    for lines in map(str.splitlines, found):
        rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
        yield rows[0], rows[2:]


def numbers(cell):
    return [float(number) for number in re.findall(r"-?\d[\d.]*", cell)]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_has_to_be_known(name):
    card = model_card(name)
    for part in ("Data", "Licence", "Limits", "How it was trained"):
        section(card, part)
    split = section(card, "Split")
    unseen = "people whom it has not seen" if name.startswith("lunet-any") else "SCD0000301"
    assert unseen in split
    cost = section(card, "Cost")
    assert re.search(r"\d CPU m?s\b", cost)
    assert re.search(r"\d MiB\b", cost)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_gives_folds_raw_and_guaranteed_and_the_worst(name):
    judged = [t for t in tables(section(model_card(name), "Figures")) if "guaranteed" in t[0]]
    assert judged
    for head, rows in judged:
        assert head[0].startswith("mean, worst")
        raw, guaranteed = head.index("network"), head.index("guaranteed")
        for cell in (rows[0][raw], rows[0][guaranteed]):
            mean, *worst = numbers(cell)
            assert worst
            assert all(w < mean if "Dice" in rows[0][0] else w > mean for w in worst)
        folded = next(row for row in rows if row[0].startswith("folded cells"))
        assert numbers(folded[raw])
        assert numbers(folded[guaranteed]) == [0]


@pytest.mark.parametrize(
    ("name", "study", "method", "measure"),
    [
        ("lunet-cardiac-mr", "monomodal", "LU-net", "dice"),
        ("lunet-mr-ct", "multimodal", "LU-net, pls, longer, then mi", "end_point_error"),
    ],
)
def test_a_headline_is_the_mean_and_the_worst_of_all_people(name, study, method, measure):
    file = DOCS.parent / f"paper/results/{study}.json"
    worst, people = min if measure == "dice" else max, {}
    for row in json.loads(file.read_text())["rows"][method]:
        people.setdefault(row["patient"], []).append(row[measure])
    means = [np.mean(values) for values in people.values()]
    expected = np.mean(means), worst(means), worst(map(worst, people.values()))
    head, rows = next(tables(section(model_card(name), "Figures")))
    digits = 3 if measure == "dice" else 2
    assert numbers(rows[0][head.index("network")]) == [round(x, digits) for x in expected]


def test_what_was_taught_by_known_displacements_knows_no_contrast():
    free = [name for name in pretrained_networks() if load_pretrained(name)["contrast_free"]]
    assert free == ["lunet-any", "lunet-any-2d"]


def test_the_headline_of_volumes_is_the_mean_and_the_worst_pair():
    lines = (DOCS.parent / "bench/results/lunet_any.jsonl").read_text().splitlines()
    head, rows = next(tables(section(model_card("lunet-any"), "Figures")))
    sets = ("brain2mm", "simulated", "abdomen_ctmr", "prostate_mrus", "cardiac3d")
    columns = {
        **{name: name for name in ("before", "network", "variational")},
        "+ 10 steps": "network and 10 steps",
    }
    for row, group in zip(rows, sets, strict=False):
        for column, method in columns.items():
            found = [
                line["dice"]
                for line in map(json.loads, lines)
                if (line["set"], line["method"]) == (group, method)
            ]
            expected = [round(np.mean(found), 3), round(min(found), 3)][: len(found)]
            assert numbers(row[head.index(column)]) == expected


def test_the_headlines_of_slices_in_any_contrast_are_the_means_and_the_worst_pairs():
    lines = (DOCS.parent / "bench/results/lunet_any_2d.jsonl").read_text().splitlines()
    head, rows = next(tables(section(model_card("lunet-any-2d"), "Figures")))
    sets = (
        ("slices_heads", "dice", min),
        ("slices_heads_simulated", "dice", min),
        ("slices_hearts", "dice", min),
        ("slices_hearts_simulated", "dice", min),
        ("slices_ctmr", "end_point_error", max),
    )
    methods = {
        "before": "before",
        "network": "network",
        "+ 10 steps": "network and 10 steps",
        "variational": "variational",
    }
    for row, (group, measure, worst) in zip(rows, sets, strict=False):
        for column, method in methods.items():
            found = [
                line[measure]
                for line in map(json.loads, lines)
                if (line["set"], line["method"]) == (group, method)
            ]
            digits = 3 if measure == "dice" else 2
            expected = [round(np.mean(found), digits), round(worst(found), digits)]
            assert numbers(row[head.index(column)]) == expected


@pytest.mark.parametrize("command", ["register", "evaluate", "export"])
def test_help_names_every_network(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said.replace("- ", "-") for name in NAMES)  # a line may end in a name


@pytest.mark.parametrize("name", [SLICES, Path(SLICES)])
def test_a_name_for_a_file_is_answered_by_the_call(name):
    hint = f'does not exist; load_pretrained("{SLICES}") gives the network'
    with pytest.raises(FileNotFoundError, match=re.escape(f"{SLICES} {hint}")):
        load_network(name)
    with pytest.raises(FileNotFoundError, match=r"run/best\.pt does not exist$"):
        load_network("run/best.pt")


def test_docs_say_what_every_network_is_of():
    limits = (DOCS / "registration.md").read_text(encoding="utf-8").partition("## Limits today")[2]
    assert all(f"[{name}](../diffreg/training/pretrained/{name}.md)" in limits for name in NAMES)


def test_a_drawn_cavity_that_grows_is_followed():
    network = load_pretrained("lunet-cardiac-mr")["network"]
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")

    def heart(radius):
        ring = torch.exp(-((((y - 48) ** 2 + (x - 48) ** 2).sqrt() - radius) ** 2) / 18)
        return (0.2 + 0.6 * torch.sigmoid(radius - ((y - 48) ** 2 + (x - 48) ** 2).sqrt()))[
            None, None
        ] + 0.1 * ring

    with torch.no_grad():
        u = network(heart(12), heart(16)) - network(heart(14), heart(14))
    assert fold_certificate(u).folded_cells == 0
    # The cavity grows: seen from the fixed image's edge, the moving one's lies inwards.
    inward = -u[0, 0, 64, 48], u[0, 0, 32, 48], -u[0, 1, 48, 64], u[0, 1, 48, 32]
    assert all(step > 0.5 for step in inward)


def test_across_modalities_a_disc_is_followed():
    """Bright in the one, dark in the other, on a body: its edge goes where the fixed one's is."""
    network = load_pretrained("lunet-mr-ct")["network"]
    y, x = torch.meshgrid(torch.arange(160.0), torch.arange(160.0), indexing="ij")
    distance = ((y - 80) ** 2 + (x - 80) ** 2).sqrt()

    def image(radius, inside, outside):
        body = torch.sigmoid(70 - distance)
        disc = torch.sigmoid(radius - distance)
        return (body * (outside + (inside - outside) * disc))[None, None]

    with torch.no_grad():
        u = network(image(20, 0.9, 0.5), image(24, 0.2, 0.6))
    assert fold_certificate(u).folded_cells == 0
    inward = -u[0, 0, 104, 80], u[0, 0, 56, 80], -u[0, 1, 80, 104], u[0, 1, 80, 56]
    assert all(step > 0.5 for step in inward)


@pytest.mark.parametrize("turned", [False, True], ids=["one contrast", "another"])
@pytest.mark.parametrize(("name", "dimensions"), [("lunet-any", 3), ("lunet-any-2d", 2)])
def test_in_any_contrast_a_ball_is_followed(name, dimensions, turned):
    network = load_pretrained(name)["network"]
    axes = torch.meshgrid(*[torch.arange(64.0) - 32] * dimensions, indexing="ij")
    distance = torch.stack(axes).norm(dim=0)

    def image(radius, inside, outside):
        body, ball = torch.sigmoid(28 - distance), torch.sigmoid(radius - distance)
        return (body * (outside + (inside - outside) * ball))[None, None]

    with torch.no_grad():
        u = network(image(12, 0.9, 0.5), image(14, *(0.2, 0.6) if turned else (0.9, 0.5)))
    assert fold_certificate(u).folded_cells == 0
    middle = 32 * sum(64**k for k in range(dimensions - 1))
    inward = [
        sign * u[0, k].movedim(k, 0)[32 - 14 * sign].flatten()[middle]
        for k in range(dimensions)
        for sign in (1, -1)
    ]
    assert all(step > 0.5 for step in inward)


def test_register_takes_its_name(tmp_path, capsys):
    nib = pytest.importorskip("nibabel")
    for k, name in enumerate(("a", "b")):
        values = np.random.default_rng(k).random((40, 48, 1)).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
    pair = [str(tmp_path / f"{name}.nii.gz") for name in "ab"]
    out = tmp_path / "out"
    assert main(["register", *pair, "-o", str(out), "--checkpoint", SLICES, "--guarantee"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["method"] == "network"
    assert metrics["certificate"]["verdict"] == "homeomorphism"
    assert main(["register", *pair, "-o", str(out), "--checkpoint", "lunet-cardiac"]) == 2
    assert re.search(r"lunet-cardiac does not exist.*lunet-cardiac-mr", capsys.readouterr().err)


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint_path(NAMES[0]).parent == FOLDER
    (tmp_path / NAMES[0]).write_bytes(b"")
    assert checkpoint_path(NAMES[0]).name == NAMES[0]
    with pytest.raises(ValueError, match="name must be one of lunet-any"):
        load_pretrained("none")
