"""The study of the warnings: limits from good pairs, and never from those that they judge."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from diffreg.registration.judgement import LIMITS
from diffreg.registration.signs import INFORMATION, NCC, Elsewhere, Motion, Signs

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH / "warnings"))
limits = pytest.importorskip("limits")
study = pytest.importorskip("study")

STILL = Motion(turn=0.0, shift=0.0, growth=1.0, share=0.1, length=1.0)
THERE = Elsewhere(turn=0.0, shift=0.0, gain=0.0, apart=2.0)
ABOUT = {"covered": 1.0, "led_out": 0.01, "moved": 2.0, "motion": STILL, "elsewhere": THERE}
GOOD = Signs(100.0, 1.0, 0.5, NCC, 0.8, 0.95, **ABOUT)
ACROSS = replace(GOOD, measure=INFORMATION, before=1.1, after=1.2)


def test_limits_are_twice_what_the_worst_good_pair_shows():
    found = limits.limits_from([GOOD, replace(GOOD, moved=3.0, after=0.9), ACROSS])
    assert found.moved == pytest.approx(0.06)
    assert found.affine == pytest.approx(0.02)
    assert found.apart == pytest.approx(0.025)
    assert found.ncc == pytest.approx((0.8, 0.85, 0.25))
    assert found.information == pytest.approx((1.1, 1.15, 0.0556), abs=1e-4)


def test_a_subject_is_judged_by_limits_from_the_others():
    """All pairs of "b" move far: by its own limits, and those of all, it would be well."""
    rows = [
        {"kind": "good", "subject": subject, "signs": asdict(replace(signs, moved=moved))}
        for subject, moved in (("a", 2.0), ("b", 9.0), ("c", 2.0))
        for signs in (GOOD, ACROSS)
    ]
    assert study.judge(rows) == [[], [], ["moved"], ["moved"], [], []]
    assert study.judge(rows[2:4]) == [[], []]  # one subject: nothing can be left out


def test_the_limits_are_those_that_the_study_found():
    found = json.loads((BENCH / "results" / "warnings.json").read_text())
    ours = {k: v._asdict() if isinstance(v, tuple) else v for k, v in LIMITS._asdict().items()}
    assert found["limits"] == ours
    warned, good = (found["warned"][kind]["all"] for kind in ("misaligned", "good"))
    assert warned[1] == good[1] == 60
    assert warned[0] >= 54
    assert good[0] <= 3
