"""Standard output and error that are closed or full: the work goes on, into its own files."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_trainer import save_images

from diffreg.cli.main import main


class Full(io.StringIO):
    """A log on a disk that is full, or a terminal that is gone."""

    def __init__(self, number=errno.ENOSPC):
        super().__init__()
        self.number, self.begun = number, False

    def write(self, text):
        self.begun = True
        self.flush()

    def flush(self):
        if self.begun:
            raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "images")
    Path("a.toml").write_text(
        "[data]\nimages = 'images'\n[model]\nwidths = [2, 4]\n"
        "[training]\nsteps = 2\nbatch_size = 2\nthreads = 1\ndevice = 'cpu'\n"
    )
    return ["train", "a.toml"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EPIPE, None])
def test_a_bar_that_cannot_be_drawn_ends_no_training(number, words, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None if number is None else Full(number))
    assert main(words) == 0
    assert Path("run/last.pt").exists()


def test_full_standard_output_is_told_with_its_name(words, monkeypatch, capsys):
    """What was written is whole: the output's folder is not to blame."""
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "diffreg: error: standard output: no space left on device: no file was left half-written"
    )
    assert Path("run/last.pt").exists()


def test_a_reader_that_is_gone_is_no_mistake(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full(errno.EPIPE))
    assert main([*words, "--print-config"]) == 141
    assert capsys.readouterr().err == ""


CLOSED = """
import os, sys
from diffreg.cli.streams import streams
with streams(), open("a.txt", "w") as file:
    os.write(2, b"what a C library prints")
    print("lost", file=sys.stderr)
    print("a line", file=file)
"""


def test_what_libraries_print_goes_into_no_file_where_standard_error_is_closed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CLOSED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        preexec_fn=lambda: [os.close(number) for number in range(3)],
    )
    assert done.returncode == 0
    assert (tmp_path / "a.txt").read_text() == "a line\n"
