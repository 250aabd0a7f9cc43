"""Attribution maps and pictures as PNG: one scale for both networks, exact colours, square pixels.

A map here is (H, W) float, the attributions of one picture summed over its channels; a picture is
(H, W, 3) uint8.
"""

import base64
import io
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image

SIDE = 256  # least side of a drawn picture in pixels
PERCENTILE = 99.0  # of the absolute attributions, pooled: the end of the colour scale
Palette = Literal["RdBu_r", "PuOr", "Cividis"]


@cache
def colours(palette: Palette) -> np.ndarray:
    """The 256 colours of a palette, (256, 3) uint8, interpolated between its published anchors."""
    from plotly import colors

    name = palette.removesuffix("_r")
    anchors = getattr(colors.sequential if name == "Cividis" else colors.diverging, name)
    if anchors[0].startswith("#"):
        values = np.array([colors.hex_to_rgb(anchor) for anchor in anchors], dtype=float)
    else:
        values = np.array([colors.unlabel_rgb(anchor) for anchor in anchors], dtype=float)
    if palette.endswith("_r"):
        values = values[::-1]
    at = np.linspace(0, len(values) - 1, 256)
    channels = [np.interp(at, np.arange(len(values)), values[:, channel]) for channel in range(3)]
    return np.stack(channels, 1).round().astype(np.uint8)


def limit(*maps: np.ndarray) -> float:
    """Where the symmetric scale of these maps ends: the 99th percentile of |value|, all maps pooled.

    Values that are no numbers are left out; 0.0 where nothing else is left.
    """
    values = np.abs(np.concatenate([np.asarray(m, dtype=float).ravel() for m in maps]))
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0
    return float(np.percentile(values, PERCENTILE) or values.max())


def signed(values: np.ndarray, end: float, palette: Palette = "RdBu_r") -> np.ndarray:
    """A map (H, W) in colours (H, W, 3): -end and below the first colour, +end and above the last."""
    scaled = np.clip(np.nan_to_num(values) / end, -1, 1) if end > 0 else np.zeros_like(values, dtype=float)
    return colours(palette)[np.rint((scaled + 1) / 2 * 255).astype(int)]


def magnitude(values: np.ndarray, end: float) -> np.ndarray:
    """|map| in cividis, (H, W, 3): 0 the first colour, `end` and above the last."""
    scaled = (
        np.clip(np.abs(np.nan_to_num(values)) / end, 0, 1) if end > 0 else np.zeros_like(values, dtype=float)
    )
    return colours("Cividis")[np.rint(scaled * 255).astype(int)]


def overlay(values: np.ndarray, end: float, picture: np.ndarray) -> np.ndarray:
    """The map over the grey picture: the stronger an attribution, the more it covers."""
    grey = (0.5 * picture.mean(2, keepdims=True) + 110).repeat(3, 2)
    share = np.clip(np.abs(np.nan_to_num(values)) / end, 0, 1)[..., None] if end > 0 else 0.0
    return np.rint((1 - share) * grey + share * signed(values, end)).clip(0, 255).astype(np.uint8)


def picture(pixels: np.ndarray) -> np.ndarray:
    """(C, H, W) uint8 with one or three channels -> (H, W, 3)."""
    pixels = np.moveaxis(np.asarray(pixels), 0, 2)
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels


def enlarge(drawn: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Every pixel as a square of whole screen pixels, so that the shorter side is at least `side`."""
    factor = -(-side // min(drawn.shape[:2]))
    return drawn.repeat(factor, 0).repeat(factor, 1)


def png(drawn: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a PNG file; equal pixels give equal bytes."""
    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(drawn)).save(target, "PNG", compress_level=6)
    return target.getvalue()


def source(drawn: np.ndarray, side: int = SIDE) -> str:
    """An enlarged PNG for the src of an img."""
    return "data:image/png;base64," + base64.b64encode(png(enlarge(drawn, side))).decode()


PANELS: dict[str, tuple[str, str]] = {
    "zero": ("All zero", "{who} does not react here: every attribution is exactly zero."),
    "constant": ("Constant", "Every pixel of {who} has the same attribution: none stands out."),
    "not finite": ("Not a number", "{who} computes values that are no numbers here, so there is no map."),
}  # state of a map (core.agreement.state) that has nothing to draw -> heading and sentence
