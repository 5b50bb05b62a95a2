"""What is sent to a GPU for a step: which of two streams waits for what, seen without a GPU."""

from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from diffreg.training.uploads import MOST, Uploads


class Stream:
    """Knows what has ended by the time that what is queued next on it runs."""

    def __init__(self, device=None):
        self.known = frozenset()

    def queue(self, what):
        self.known |= {what}

    def record_event(self):
        return self.known

    def wait_event(self, event):
        self.known |= event

    def wait_stream(self, other):
        self.known |= other.known


class Copied(NamedTuple):
    """A copy into a buffer, and what had certainly ended before."""

    buffer: int
    before: frozenset


@pytest.fixture
def streams(monkeypatch):
    """The stream of the steps, and the copies that were queued on another one."""
    steps, now, copies = Stream(), [], []

    @contextmanager
    def on(stream):
        now.append(stream)
        yield
        now.pop()

    copy = torch.Tensor.copy_

    def noted(self, source, non_blocking=False):
        assert non_blocking
        copies.append(Copied(self.data_ptr(), now[-1].known))
        now[-1].queue(f"copy {len(copies) - 1}")
        return copy(self, source)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: steps)
    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    return steps, copies


def test_one_set_is_filled_while_a_step_reads_the_other(streams):
    steps, copies = streams
    steps.queue("what was before")
    send = Uploads(torch.device("cpu"))
    found = []
    for step in range(6):
        (image, nothing) = send((torch.full((2, 3), float(step)), None))
        assert nothing is None and (image == step).all()
        assert f"copy {step}" in steps.known  # the step waits for its own images
        found.append(image.data_ptr())
        steps.queue(f"step {step}")
    assert len(set(found)) == 2 and found == [copy.buffer for copy in copies]
    for step, (_, before) in enumerate(copies):
        # Memory that a buffer was made of, and what was read two steps before, is free.
        assert "what was before" in before
        assert step < 2 or f"step {step - 2}" in before
        assert f"step {step - 1}" not in before  # which is computed meanwhile


def test_each_form_has_its_two_sets_up_to_a_number(streams):
    steps, copies = streams
    send = Uploads(torch.device("cpu"))
    for step in range(3 * (MOST + 2)):
        size = 1 + step % (MOST + 2)
        image = torch.rand(size)
        assert torch.equal(send({"image": image})["image"], image)
        steps.queue(f"step {step}")
    assert len(copies) == 3 * MOST and len({copy.buffer for copy in copies}) == 2 * MOST
    for number, (buffer, before) in enumerate(copies):
        step = (MOST + 2) * (number // MOST) + number % MOST
        if number < 2 * MOST:  # its memory may be what a step still used when it was made
            assert all(f"step {earlier}" in before for earlier in range(number % MOST))
        readers = [k for k, copy in enumerate(copies[:number]) if copy.buffer == buffer]
        for reader in readers:
            assert f"step {(MOST + 2) * (reader // MOST) + reader % MOST}" in before
        assert f"step {step}" not in before


def test_another_dtype_is_another_form(streams):
    send = Uploads(torch.device("cpu"))
    for dtype in (torch.float32, torch.bool, torch.float32, torch.float64):
        (sent,) = send([torch.ones(3, dtype=dtype)])
        assert sent.dtype == dtype
