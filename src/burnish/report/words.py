"""Numbers in words, as every page writes them."""

from __future__ import annotations

import math

from burnish.report import charts

UNITS = {
    "brightness": "mean luma in 0–1",
    "colourfulness": "M3 in 0–298",
    "compressibility": "minus kB of JPEG",
    "contrast": "std of luma",
    "entropy": "bits",
    "incompressibility": "kB of JPEG",
    "mirror-symmetry": "minus mean difference",
    "portrait-alignment": "share of attributes",
    "portrait-likelihood": "nats per attribute",
    "rotation-symmetry": "minus mean difference",
    "sharpness": "variance of the Laplacian",
    "similarity": "minus mean squared difference",
    "structural-similarity": "SSIM",
    "webp-compressibility": "minus kB of WebP",
    "webp-incompressibility": "kB of WebP",
}
"""Of the shipped rewards; any other is in its own unit."""


def unit(reward: str) -> str:
    """Of a reward, by its name in the recipe."""
    return UNITS.get(reward, f"reward ({reward})" if reward else "reward")


def digits(size: float) -> int:
    """Decimals that show two digits of a positive number."""
    return max(0, 1 - math.floor(math.log10(size)))


def fixed(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−")


def significant(value: float) -> str:
    """Three significant digits; powers of ten for what would be long."""
    if value == 0 or not math.isfinite(value) or 0.001 <= abs(value) < 100_000:
        return f"{value:,.3g}".replace("-", "−") if abs(value) < 1000 else f"{value:,.0f}"
    leading, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(leading):g} × 10{charts.superscript(int(exponent))}".replace("-", "−")


def count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
