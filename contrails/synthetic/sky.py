"""Synthetic scenes in nine GOES-16 bands: ground, moisture, three layers of drifting clouds, and contrails.

Shapes are (size, size) for a field and (9, size, size) for the bands; shifts are (down, right) in pixels. Temperatures
are mixed linearly by emissivity instead of by Planck's law, which gives the same split-window signature.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import fft, ndimage

from contrails.sources.records import LABEL_FRAME, LABEL_OFFSET_PX

BANDS = tuple(range(8, 17))

_NOISE_K = 0.06
_SPLIT_WINDOW = 0.3  # increase of b14 - b15 per decrease of b14 by a thin contrail, in K per K

# Properties of the bands. surface: 1 if the ground is visible; base: kelvin added to it, or emitted by the air; moist:
# kelvin lost per unit of moisture; water, ice, young: optical depth of droplets, of cirrus and of the small crystals of
# a contrail, relative to 11.2 um (small ice absorbs more at 12.3 um, which is the signature of contrails); level:
# temperature of the height below which vapour hides clouds; share, above: transmitted fraction of the signal, and
# temperature of the emission that replaces the rest.
_TABLE = np.array(
    # surface base moist water ice young level share above
    [
        [0, 232.0, 2.8, 1.00, 0.90, 0.90, 240, 1.00, 0],  # 08  upper-level water vapour
        [0, 242.5, 3.3, 1.00, 0.90, 0.90, 250, 1.00, 0],  # 09  mid-level water vapour
        [0, 252.0, 3.0, 1.00, 0.90, 0.90, 260, 1.00, 0],  # 10  lower-level water vapour
        [1, -1.8, 2.1, 1.00, 0.80, 0.70, 400, 1.00, 0],  # 11  8.4 um
        [1, 0.0, 1.5, 1.00, 0.90, 0.90, 400, 0.55, 234],  # 12  ozone
        [1, 0.0, 1.1, 1.00, 0.93, 0.90, 400, 1.00, 0],  # 13  10.3 um
        [1, 0.0, 1.5, 1.00, 1.00, 1.00, 400, 1.00, 0],  # 14  11.2 um
        [1, -0.6, 2.9, 1.02, 1.12, 1.35, 400, 1.00, 0],  # 15  12.3 um
        [1, -3.0, 3.5, 1.02, 1.15, 1.30, 400, 0.75, 212],  # 16  carbon dioxide
    ]
).T[:, :, None, None]
_SURFACE, _BASE, _MOIST, _WATER, _ICE, _YOUNG, _LEVEL, _SHARE, _ABOVE = _TABLE

Shift: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Sky:
    """The content of a record: `frame` renders the bands, `annotate` the masks."""

    ground: np.ndarray
    moisture: "_Fractal"
    mean_moisture: float
    layers: tuple["_Layer", ...]
    contrails: tuple["_Contrail", ...]
    contrail_k: float
    wind: Shift  # pixels per frame, at the height of the contrails

    def frame(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Return the bands at a frame in kelvin, with detector noise; float64 (9, size, size)."""
        depth = sum(
            (line.depth_at(self.size, self.wind, number) for line in self.contrails), np.zeros_like(self.ground)
        )
        kelvin = _through(self._below_contrails(number), _YOUNG, depth, self.contrail_k)
        seen: np.ndarray = _SHARE * kelvin + (1 - _SHARE) * _ABOVE + rng.normal(0, _NOISE_K, kelvin.shape)
        return seen

    def annotate(self, rng: np.random.Generator) -> np.ndarray:
        """Return the masks of 4 to 6 simulated annotators; int32 (size, size, 1, annotators), 0 and 1.

        Annotators differ in the smallest contrast that they see, and in the width and position of what they draw.
        """
        b14, b15 = self._below_contrails(LABEL_FRAME)[[BANDS.index(14), BANDS.index(15)]]
        backdrop_k = ndimage.gaussian_filter(b14 - self.contrail_k, 2)
        clutter_k = ndimage.gaussian_filter(abs(ndimage.gaussian_laplace(b14 - b15, 1)), 3)
        masks = np.zeros((self.size, self.size, 1, int(rng.integers(4, 7))), np.int32)
        for annotator in range(masks.shape[3]):
            noticed_k, width = rng.uniform(0.4, 0.8), rng.uniform(1.2, 2.4)
            for contrail in self.contrails:
                down, right = np.add(LABEL_OFFSET_PX, rng.normal(0, 0.4, 2))
                along, across = contrail.line.coordinates(self.size, (down, right))
                half_length = contrail.half_length + rng.normal(0, 5)
                clear = _SPLIT_WINDOW * contrail.depth * backdrop_k > noticed_k * rng.lognormal(0, 0.4) + 2 * clutter_k
                masks[:, :, 0, annotator] |= (abs(across) < width) & (abs(along) < half_length) & clear
        return masks

    @property
    def size(self) -> int:
        return len(self.ground)

    def _below_contrails(self, frame: int) -> np.ndarray:
        moisture = self.mean_moisture + self.moisture.at(_drift(self.wind, frame, 0.5))
        kelvin: np.ndarray = (
            _SURFACE * self.ground + _BASE - _MOIST * np.where(_SURFACE, moisture, 4 * (moisture - 1.5))
        )
        for layer in self.layers:
            kelvin = layer.over(kelvin, _drift(self.wind, frame, layer.speed))
        return kelvin


def draw_ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return the surface temperature of a location in kelvin: land with texture beside a smooth, cooler sea."""
    texture = _Fractal.draw(rng, size, 1.2, 2.2).at((0, 0))
    sea = _step(4 * (_Fractal.draw(rng, size, 2.0).at((0, 0)) + rng.uniform(-2, 1)))
    field: np.ndarray = rng.uniform(287, 297) + (1 - sea) * texture - sea * rng.uniform(1, 8)
    return field


def draw_sky(rng: np.random.Generator, ground: np.ndarray) -> Sky:
    """Draw weather over a ground; half of the skies have contrails."""
    size = len(ground)
    wind = (float(rng.normal(0, 1.5)), float(rng.normal(0, 3.5)))
    along_wind = float(np.arctan2(*wind))
    edge = _Line.draw(rng, size, along_wind) if rng.random() < 0.4 else None
    streaks = _Fractal.draw(rng, size, 1.5, stretch=rng.uniform(1, 6), angle=along_wind)
    layers = (
        _Layer(_Fractal.draw(rng, size, 1.3), 0.3, rng.uniform(0.3, 2.5), 2, rng.uniform(272, 284), 5, _WATER),
        _Layer(_Fractal.draw(rng, size, 1.5), 0.6, rng.uniform(1, 3), 2, rng.uniform(245, 262), 12, _ICE),
        _Layer(streaks, 1, rng.uniform(0.2, 2.5), rng.uniform(0.1, 1), rng.uniform(218, 230), 6, _ICE, edge),
    )
    moisture = _Fractal.draw(rng, size, 1.9, 0.25)
    contrails = _draw_contrails(rng, size) if rng.random() < 0.5 else ()
    return Sky(ground, moisture, rng.uniform(0.9, 2.2), layers, contrails, rng.uniform(216, 226), wind)


def _draw_contrails(rng: np.random.Generator, size: int) -> tuple["_Contrail", ...]:
    corridor = rng.uniform(0, np.pi)
    return tuple(
        _Contrail(
            _Line.draw(rng, size, corridor),
            half_length=size * rng.uniform(0.06, 0.35),
            sigma=rng.uniform(0.7, 1.3),
            depth=rng.uniform(0.04, 0.16),
            birth=rng.uniform(-6, 3),
            phase=rng.uniform(0, 6),
        )
        for _ in range(1 + rng.poisson(3))
    )


@dataclass(frozen=True)
class _Fractal:
    """A random field with spectrum wavenumber**-slope, stretched along an angle, that can be shifted by subpixels."""

    spectrum: np.ndarray
    size: int

    @classmethod
    def draw(
        cls, rng: np.random.Generator, size: int, slope: float, spread: float = 1, stretch: float = 1, angle: float = 0
    ) -> "_Fractal":
        side = size + size // 2  # larger than the image, as the field is periodic and drifts
        fy, fx = _frequencies(side)
        along, across = np.cos(angle) * fx + np.sin(angle) * fy, np.cos(angle) * fy - np.sin(angle) * fx
        wavenumber = np.hypot(stretch * along, across)
        wavenumber[0, 0] = np.inf
        spectrum = fft.rfft2(rng.standard_normal((side, side))) * wavenumber**-slope
        return cls(spectrum * (spread / fft.irfft2(spectrum, s=(side, side)).std()), size)

    def at(self, shift: Shift) -> np.ndarray:
        side = len(self.spectrum)
        fy, fx = _frequencies(side)
        phase = np.exp(-2j * np.pi * (fy * shift[0] + fx * shift[1]))
        field: np.ndarray = fft.irfft2(self.spectrum * phase, s=(side, side))[: self.size, : self.size]
        return field


@dataclass(frozen=True)
class _Line:
    """A curve at the labelled frame: centre (down, right) in pixels, angle in radians, curvature per pixel."""

    centre: Shift
    angle: float
    bend: float

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int, angle: float) -> "_Line":
        down, right = rng.uniform(0.1, 0.9, 2) * size
        return cls((down, right), angle + rng.normal(0, 0.35), rng.normal(0, 0.4) / size)

    def coordinates(self, size: int, shift: Shift) -> tuple[np.ndarray, np.ndarray]:
        """Return the position of each pixel (along, across) relative to the line moved by `shift`, in pixels."""
        down = np.arange(size)[:, None] - self.centre[0] - shift[0]
        right = np.arange(size)[None] - self.centre[1] - shift[1]
        along = np.cos(self.angle) * right + np.sin(self.angle) * down
        across = np.cos(self.angle) * down - np.sin(self.angle) * right
        return along, across - self.bend * along**2 / 2


@dataclass(frozen=True)
class _Layer:
    """Clouds of one height, where `field` exceeds `threshold`: thicker for larger values, and cut off at `edge`."""

    field: _Fractal
    speed: float  # as a fraction of the wind at the height of the contrails
    threshold: float
    density: float
    top_k: float
    rise_k: float
    absorption: np.ndarray
    edge: _Line | None = None

    def over(self, kelvin: np.ndarray, shift: Shift) -> np.ndarray:
        excess = np.logaddexp(0, 6 * (self.field.at(shift) - self.threshold)) / 6
        depth = self.density * excess
        if self.edge is not None:
            depth = depth * _step(self.edge.coordinates(self.field.size, shift)[1] / 2)
        return _through(kelvin, self.absorption, depth, self.top_k - self.rise_k * excess)


@dataclass(frozen=True)
class _Contrail:
    line: _Line
    half_length: float
    sigma: float
    depth: float
    birth: float  # frame
    phase: float

    def depth_at(self, size: int, wind: Shift, frame: int) -> np.ndarray:
        """Return the optical depth at 11.2 um."""
        along, across = self.line.coordinates(size, _drift(wind, frame))
        grown = np.clip((frame - self.birth) / 2, 0, 1)
        patchy = 0.75 + 0.25 * np.sin(along / 6 + self.phase)
        ends = _step(self.half_length - abs(along))
        profile: np.ndarray = self.depth * grown * patchy * ends * np.exp(-((across / self.sigma) ** 2) / 2)
        return profile


def _through(kelvin: np.ndarray, absorption: np.ndarray, depth: np.ndarray, top_k: np.ndarray | float) -> np.ndarray:
    """Return the temperatures that a satellite measures of `kelvin` through ice or droplets of temperature `top_k`."""
    visible = np.clip((_LEVEL - top_k) / 25, 0, 1)
    mixed: np.ndarray = kelvin - visible * np.expm1(-absorption * depth) * (top_k - kelvin)
    return mixed


def _drift(wind: Shift, frame: int, speed: float = 1) -> Shift:
    frames = speed * (frame - LABEL_FRAME)
    return wind[0] * frames, wind[1] * frames


def _frequencies(side: int) -> tuple[np.ndarray, np.ndarray]:
    return fft.fftfreq(side)[:, None], fft.rfftfreq(side)[None]


def _step(x: np.ndarray) -> np.ndarray:
    """Return a smooth step from 0 to 1 with a width of about two units of `x`."""
    step: np.ndarray = (1 + np.tanh(x)) / 2
    return step
