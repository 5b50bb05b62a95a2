"""Real signals to a real process: nothing half-written, and one line that says what is safe."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone]

WORD = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)


def picture(at, shape=(128, 112)):
    x, y = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    body = np.exp(-(((x - at) / 0.2) ** 2 + ((y - 0.45) / 0.3) ** 2))
    return (200 * body + 20 * np.sin(40 * x * at) * np.cos(30 * y)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    for k in range(8):
        for name, at in (("m", 0.56 + k / 100), ("f", 0.5)):
            nib.save(
                nib.Nifti1Image(picture(at), np.diag([1.0, 1, 5, 1])),
                tmp_path / f"{name}{k}.nii.gz",
            )
    lines = [f"m{k}.nii.gz,f{k}.nii.gz" for k in range(8)]
    (tmp_path / "pairs.csv").write_text("\n".join(["moving,fixed", *lines]))
    return tmp_path


class Command:
    """`diffreg WORDS` as a process of its own, on one thread."""

    def __init__(self, folder, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diffreg.cli.main", *words],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A background job of a script inherits Ctrl-C ignored, and keeps it so.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def stopped(self, number):
        """Its standard error after the signal, and its exit status."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return said, self.process.returncode

    def until(self, condition):
        for _ in range(1200):
            if condition():
                return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        raise AssertionError("it never came so far")


def leftovers(folder):
    """Temporary files and folders."""
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@both
def test_a_manifest_keeps_what_is_complete_and_goes_on(number, folder):
    command = Command(folder, "register", "pairs.csv", "-o", "out")
    out = folder / "out"
    command.until(lambda: len(list(out.glob("*/metrics.json"))) >= 2)
    said, status = command.stopped(number)
    assert status == STATUS[number]
    complete = [path.parent for path in out.glob("*/metrics.json")]
    expected = f"diffreg: {WORD[number]}; (\\d) pairs are complete in out; the same command goes on"
    found = re.search(expected, said)
    assert found and int(found[1]) == len(complete)
    assert "Traceback" not in said
    assert leftovers(folder) == []
    assert sorted(complete) == sorted(path for path in out.iterdir() if path.is_dir())
    for pair in complete:
        json.loads((pair / "metrics.json").read_text())
        assert np.isfinite(nib.load(pair / "displacement.nii.gz").get_fdata()).all()
    (folder / "pairs.csv").write_text("moving,fixed\nm0.nii.gz,f0.nii.gz\nm1.nii.gz,f1.nii.gz")
    again = Command(folder, "register", "pairs.csv", "-o", "out")
    assert "2 of 2 pairs were complete and are kept" in again.process.communicate(timeout=60)[1]
    assert again.process.returncode == 0


@both
def test_one_pair_leaves_nothing(number, folder):
    command = Command(folder, "register", "m0.nii.gz", "f0.nii.gz", "-o", "out")
    assert command.process.stderr.readline().startswith("no --checkpoint")  # it has begun
    said, status = command.stopped(number)
    assert status == STATUS[number]
    assert said == f"diffreg: {WORD[number]}; no file in out is half-written\n"
    assert not (folder / "out").exists()
    assert leftovers(folder) == []


def test_stopped_at_any_moment(folder):
    """From the first import to the last file: whole results or none, one line, no trace."""
    for delay in (0.5, 1.2, 1.8, 2.6):
        command = Command(folder, "register", "m1.nii.gz", "f1.nii.gz", "-o", "out")
        time.sleep(delay)
        said, status = command.stopped(signal.SIGTERM)
        files = {path.name for path in (folder / "out").glob("*")}
        if files:
            assert len(files) == 8
        if status == 0 or status == -signal.SIGTERM:  # done, or before the first line of ours
            continue
        assert status == 143, said
        assert said.splitlines()[-1].startswith("diffreg: terminated; ")
        assert "Traceback" not in said
        assert leftovers(folder) == []


def own_command(body, number, folder):
    """`diffreg info` whose work is `body`, which sends itself `number`."""
    (folder / "stopped.py").write_text(f"""
import os, signal, sys, time
from diffreg.cli import main as cli
from diffreg.cli import commands
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
NUMBER = {int(number)}
def work(options):
    {body}
commands.run_info = work
sys.exit(cli.main(["info"]))
""")
    command = [sys.executable, "-m", "stopped"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50)
    assert done.returncode == STATUS[number]
    assert done.stderr == f"diffreg: {WORD[number]}; no file is half-written\n"


@both
def test_stopped_while_a_library_executes_text(number, tmp_path):
    """As dataclasses do: CPython would end by SIGINT if it saw its own exception there."""
    own_command(
        'exec("import os; os.kill(os.getpid(), NUMBER); [None for _ in range(10**6)]")',
        number,
        tmp_path,
    )


LEFT = {
    "finalizer": """
    class Late:
        def __del__(self):
            os.kill(os.getpid(), NUMBER)
            for _ in range(10**6): pass
    Late()""",
    "weak reference": """
    import weakref
    class Late: pass
    def gone(_):
        os.kill(os.getpid(), NUMBER)
        for _ in range(10**6): pass
    late = Late()
    kept = weakref.ref(late, gone)
    del late""",
    "collector": """
    import gc
    def collected(phase, found):
        if phase == "stop" and collected in gc.callbacks:
            gc.callbacks.remove(collected)
            os.kill(os.getpid(), NUMBER)
            for _ in range(10**6): pass
    gc.callbacks.append(collected)
    gc.collect()""",
}


@both
@pytest.mark.parametrize("place", LEFT)
def test_stopped_where_python_drops_exceptions(number, place, tmp_path):
    """The command ends all the same, at once and without a trace of where it was."""
    own_command(LEFT[place] + "\n    time.sleep(60)", number, tmp_path)
