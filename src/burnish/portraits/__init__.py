"""The embedded models, miniatures of pixel-art faces, with their prompts and their judge.

`PIPELINE`, the model `portraits`, is a folder for `diffusers.StableDiffusionPipeline.from_pretrained`.
`FLOW_PIPELINE`, `portraits-flow`, is one for `StableDiffusion3Pipeline`, which must be told that there is no
T5: `text_encoder_3=None, tokenizer_3=None`. `attributes` says what a portrait can show, `captions` writes
prompts, `judge` scores images against them. MODEL_CARD.md tells how all of it was made.
"""

from pathlib import Path

PIPELINE = Path(__file__).parent / "pipeline"
FLOW_PIPELINE = Path(__file__).parent / "flow-pipeline"
