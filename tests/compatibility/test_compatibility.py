"""What releases wrote loads today: exported programs run, and schemas have only grown."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from compatibility.program import Program, images

import diffreg.ops  # noqa: F401  (registers the operators)

ROOM = Path(__file__).parent


def torch_of(path):
    """The torch that wrote a program."""
    with zipfile.ZipFile(path) as archive:
        (model,) = (name for name in archive.namelist() if name.endswith("models/model.json"))
        return json.loads(archive.read(model))["torch_version"]


# On first use, parts of torch warn about torch's own modules.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("path", sorted(ROOM.glob("*.pt2")), ids=lambda path: path.stem)
def test_a_program_of_an_earlier_release_gives_what_the_operators_give(path):
    try:
        program = torch.export.load(path)
    except Exception as error:
        if torch_of(path) == torch.__version__:
            raise
        pytest.skip(f"torch {torch.__version__} cannot load what {torch_of(path)} wrote: {error}")
    found, expected = program.module()(*images()), Program()(*images())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, n=name: f"{n}: {text}")


SCHEMAS = [
    line for path in sorted(ROOM.glob("*.txt")) for line in path.read_text().splitlines() if line
]


@pytest.mark.parametrize("line", SCHEMAS, ids=lambda line: line.partition("(")[0])
def test_a_schema_takes_what_it_took(line):
    earlier = torch._C.parse_schema(line)
    today = getattr(torch.ops.diffreg, earlier.name.removeprefix("diffreg::")).default._schema
    assert today.is_backward_compatible_with(earlier), f"{today} does not take {line}"


def test_a_schema_that_asks_for_more_is_found():
    earlier = torch._C.parse_schema("diffreg::some(Tensor image) -> Tensor")
    takes = "diffreg::some(Tensor image, str padding{}) -> Tensor"
    with_default = torch._C.parse_schema(takes.format('="border"'))
    assert with_default.is_backward_compatible_with(earlier)
    assert not torch._C.parse_schema(takes.format("")).is_backward_compatible_with(earlier)
