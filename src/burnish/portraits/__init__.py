"""The embedded model `portraits`: a miniature Stable Diffusion of pixel-art faces, its prompts and its judge.

`PIPELINE` is a folder for `diffusers.StableDiffusionPipeline.from_pretrained`. `attributes` says what
a portrait can show, `captions` writes prompts, `judge` scores images against them. MODEL_CARD.md tells
how all of it was made.
"""

from pathlib import Path

PIPELINE = Path(__file__).parent / "pipeline"
