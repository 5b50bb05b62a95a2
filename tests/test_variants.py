"""A few of the drawn cases of tests/variants.py, and faults that they must find."""

import itertools
import json

import pytest
import torch
from drawn_agreement import check, digest_of, expected, results
from drawn_operators import PLANS, drawn
from drawn_tensors import Steeper
from variants import blocks, differing, journal_of, one_group, said_of

from diffreg import ops

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("block", range(2))
def test_drawn_cases_agree(block):
    wrong = [one_group(block, index, True)["wrong"] for index in range(30)]
    assert not any(wrong), "\n".join(filter(None, wrong))


def test_a_group_is_drawn_from_its_number():
    first, again = drawn(3, 19), drawn(3, 19)
    assert str(first) == str(again) != str(drawn(4, 19))
    assert digest_of(results(first)[0]) == digest_of(results(again)[0])


def off(x):
    """The last number is one part in 10,000 too large."""
    factor = torch.ones_like(x)
    factor.view(-1)[-1:] += 1e-4
    return x * factor


@pytest.mark.parametrize("operator", PLANS)
@pytest.mark.parametrize("part", ["value", "gradient"])
def test_a_number_that_is_off_is_found(operator, part, monkeypatch):
    """One of a tensor's, by 1e-4 of itself, within 400 cases of the operator."""
    right = getattr(ops, operator)

    def wrong(*args, **options):
        if part == "gradient":
            args = [Steeper.apply(x, off) if x.requires_grad else x for x in args]
            return right(*args, **options)
        result = right(*args, **options)
        values = [result] if isinstance(result, torch.Tensor) else list(result)
        values = [x if x is None or not x.is_floating_point() else off(x) for x in values]
        return values[0] if isinstance(result, torch.Tensor) else type(result)(*values)

    monkeypatch.setattr(ops, operator, wrong)
    cases = 0
    for index in itertools.count(list(PLANS).index(operator), len(PLANS)):
        group = drawn(0, index)
        cases += len(group.cases)
        assert cases < 400
        group.twice = False
        try:
            check(group, results(group), expected(group))
        except AssertionError:
            return


def test_other_bits_are_a_disagreement():
    digests = {"baseline": ["a", "b", "", "d"], "avx2": ["a", "x", "c", "d"]}
    (line,) = differing(digests, 7)
    assert line == "baseline and avx2, block 7, group 1: disagreement: other bits"


def test_a_journal_goes_on_and_takes_again_what_went_wrong(tmp_path):
    journal = tmp_path / "journal"
    rows = [
        {"block": block, "cases": {"none": 10}, "seconds": 0.5, "wrong": wrong}
        for block, wrong in ((4, []), (5, ["none, block 5: crash: it ended"]), (6, []))
    ]
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"block": 7, "ca')
    found = journal_of(journal, ["none"])
    assert said_of(found) == "30 cases (30 none), 20 a CPU second: 1 crashes, 0 disagreements"
    assert list(itertools.islice(blocks(found, 0), 3)) == [5, 7, 8]
    assert journal_of(journal, ["avx2"]) == {}
    assert next(blocks({}, 2)) == 2
