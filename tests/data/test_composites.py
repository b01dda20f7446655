import numpy as np
import pytest
import torch

from contrails.data.composites import channels, compose
from contrails.errors import RecipeError

BANDS = ("b11", "b14", "b15")


def test_ash_equals_the_published_formula_on_raw_kelvin() -> None:
    rng = np.random.default_rng(0)
    kelvin = rng.uniform(220, 310, (2, 1, 3, 8, 8)).astype(np.float32)
    packed = torch.from_numpy(np.rint((kelvin - 273.15) / 0.01).astype(np.int16))
    out = compose(packed, channels("ash", BANDS), BANDS, 0.01, 273.15).numpy()
    b11, b14, b15 = kelvin[:, 0, 0], kelvin[:, 0, 1], kelvin[:, 0, 2]
    expected = np.stack([(b15 - b14 + 4) / 6, (b14 - b11 + 4) / 9, (b14 - 243) / 60], axis=1).clip(0, 1)
    # two bands, each rounded to 0.005 K, over the range of the narrowest channel
    assert np.abs(out - expected).max() <= 0.0102 / 6
    assert expected.std() > 0.1


def test_frames_follow_each_other() -> None:
    packed = torch.zeros((1, 2, 3, 4, 4), dtype=torch.int16)
    packed[:, 1, 1] = 1000  # b14 of the second frame, 283.15 K
    out = compose(packed, channels("bands", BANDS), BANDS, 0.01, 273.15)
    assert out.shape == (1, 6, 4, 4)
    expected = torch.full((6,), (273.15 - 200) / 120)
    expected[4] = (283.15 - 200) / 120
    assert torch.allclose(out[0, :, 0, 0], expected)


def test_unknown_composite_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"data.composite = 'ashh'.*did you mean 'ash'"):
        channels("ashh", BANDS)


def test_missing_band_is_named() -> None:
    with pytest.raises(RecipeError, match=r"needs the bands b11, b15, the dataset holds b14"):
        channels("ash", ("b14",))
