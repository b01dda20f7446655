"""Copies of a state from a GPU: those of the step, though the CPU does not wait and the training goes on."""

import pytest
import torch

from contrails.train.saved.host import HostCopies

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]


def test_a_copy_is_that_of_the_step_at_which_it_was_asked_for(gpu: torch.device) -> None:
    weights, busy = torch.zeros(4096, 4096, device=gpu), torch.eye(4096, device=gpu)
    last = weights.T  # other strides
    copies, places = HostCopies(), set()
    copies.copy({"weights": weights, "last": last})[1]()  # allocates
    for number in range(1, 5):
        for _ in range(8):
            busy = busy @ busy  # asked for faster than it is done
        weights.fill_(number)
        torch.cuda.set_sync_debug_mode("error")
        try:
            copied, wait = copies.copy({"weights": weights, "last": last})
        finally:
            torch.cuda.set_sync_debug_mode("default")
        weights.fill_(99)  # the next step
        wait()
        for tensor in (copied["weights"], copied["last"]):
            assert tensor.is_pinned()
            assert (tensor == number).all()
        places.add((copied["weights"].data_ptr(), copied["last"].data_ptr()))
    assert len(places) == 1
