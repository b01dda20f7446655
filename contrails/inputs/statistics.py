"""Running minimum, mean, standard deviation and maximum of values that come in pieces."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Statistics of all values of one band or channel, in its unit; `std` is the population standard deviation."""

    min: float
    mean: float
    std: float
    max: float

    def mapped(self, factor: float, shift: float) -> "Statistics":
        """Return the statistics of `factor * value + shift`; the factor is positive."""
        low, mean, high = (factor * value + shift for value in (self.min, self.mean, self.max))
        return Statistics(low, mean, factor * self.std, high)


class Running:
    """Statistics of several channels, accumulated piece by piece.

    Means and squared deviations are merged by the method of Chan, Golub and LeVeque (1983), in float64: with plain sums
    of squares a small deviation would be lost in rounding.
    """

    def __init__(self, num_channels: int) -> None:
        self.count = 0
        self._mean, self._squares = np.zeros(num_channels), np.zeros(num_channels)
        self._low, self._high = np.full(num_channels, np.inf), np.full(num_channels, -np.inf)

    def add(self, piece: np.ndarray) -> None:
        """Add the values of a piece, of shape (num_channels, any number)."""
        values = piece.astype(np.float64)
        size, mean = values.shape[1], values.mean(axis=1)
        self._low, self._high = np.minimum(self._low, values.min(axis=1)), np.maximum(self._high, values.max(axis=1))
        values -= mean[:, None]
        delta, total = mean - self._mean, self.count + size
        self._squares += np.einsum("ci,ci->c", values, values) + delta**2 * (self.count * size / total)
        self._mean += delta * (size / total)
        self.count = total

    def statistics(self) -> list[Statistics]:
        """Return the statistics of each channel over all added values."""
        std = np.sqrt(self._squares / self.count)
        return [
            Statistics(*map(float, channel)) for channel in zip(self._low, self._mean, std, self._high, strict=True)
        ]
