"""The emulated kernels, which a process can load once."""

import pytest
from emulation import build
from emulation.emulated import Emulation


@pytest.fixture(scope="session")
def emulation() -> Emulation:
    return Emulation(build.build("plain"))
