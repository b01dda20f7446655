import pytest
import torch

from contrails.errors import DataError
from contrails.inputs.augment.dihedral import apply_dihedral, inverse, label_shift, move_image, move_label

HALF = (0.5, 0.5)
NUM_ELEMENTS = 8


def test_the_eight_elements_differ() -> None:
    image = torch.arange(9).view(3, 3)
    moved = {tuple(move_image(image, element).flatten().tolist()) for element in range(NUM_ELEMENTS)}
    assert len(moved) == NUM_ELEMENTS
    assert torch.equal(move_image(image, 0), image)


@pytest.mark.parametrize("element", range(NUM_ELEMENTS))
def test_inverse_undoes_image_and_label(element: int) -> None:
    image = torch.arange(36.0).view(6, 6)
    assert torch.equal(move_image(move_image(image, element), inverse(element)), image)
    back = move_label(move_label(image, element, HALF, -1), inverse(element), HALF, -1)
    inner = (slice(1, -1), slice(1, -1))
    assert torch.equal(back[inner], image[inner])


@pytest.mark.parametrize("element", range(NUM_ELEMENTS))
def test_a_label_half_a_pixel_off_stays_on_its_image(element: int) -> None:
    """A label pixel that covers a 2x2 block of the image must cover the moved block after the move."""
    image, label = torch.zeros(8, 8), torch.zeros(8, 8)
    image[2:4, 4:6] = 1  # centred at (2.5, 4.5)
    label[3, 5] = 1  # half a pixel down-right of it
    moved_image, moved_label = move_image(image, element), move_label(label, element, HALF, 0)
    centre = moved_image.nonzero().float().mean(0)
    assert (moved_label.nonzero()[0] - centre).tolist() == [0.5, 0.5]


def test_flip_in_x_shifts_the_label_right_by_one() -> None:
    assert label_shift(1, HALF) == (0, 1)
    assert label_shift(2, HALF) == (1, 0)
    assert label_shift(3, HALF) == (1, 1)
    assert label_shift(4, HALF) == (0, 0)
    assert {label_shift(element, (0, 0)) for element in range(8)} == {(0, 0)}


def test_exposed_border_is_filled() -> None:
    moved = move_label(torch.zeros(4, 4), 1, HALF, 255)
    assert moved[:, 0].tolist() == [255] * 4
    assert not moved[:, 1:].any()


def test_a_shift_that_is_not_whole_is_refused() -> None:
    with pytest.raises(DataError, match=r"label_offset_px = \(0.25, 0.0\).*augment.dihedral=0"):
        label_shift(2, (0.25, 0.0))


def test_each_sample_moves_by_its_own_element() -> None:
    images = torch.arange(32.0).view(2, 1, 4, 4)
    moved, labels = apply_dihedral(images, images[:, 0], [0, 2], (0, 0), 255)
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1], images[1].flip(-2))
    assert torch.equal(labels, moved[:, 0])
