"""How torch's threads wait: `import diffreg` before torch says it, unless somebody else has."""

import os
import subprocess
import sys

import pytest

SAID = "; import os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("imports", "environment", "expected"),
    [
        ("import diffreg", {}, "1000"),
        ("import diffreg.cli.main", {}, "1000"),
        ("import diffreg", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("import diffreg", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("import torch, diffreg", {}, "None"),  # it was read already
    ],
)
def test_they_sleep_soon(imports, environment, expected):
    ours = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    usual = {name: value for name, value in os.environ.items() if name not in ours}
    command = [sys.executable, "-c", imports + SAID]
    said = subprocess.run(command, env=usual | environment, capture_output=True, text=True)
    assert said.stdout.strip() == expected
