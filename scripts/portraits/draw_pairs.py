"""Draw the pairs of portraits that the recipes for given images learn from.

    python scripts/portraits/draw_pairs.py src/burnish/portraits/pairs

The base model draws eight portraits of each prompt; the one that compresses best as JPEG is chosen, the worst
is rejected. `metadata.jsonl` lists the pairs, `chosen.jsonl` the chosen alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from burnish import load, sample
from burnish.images import to_pil
from burnish.policy import Policy
from burnish.portraits.prompts import Portraits
from burnish.randomness import Randomness
from burnish.reward import score
from burnish.rewards import Compressibility
from burnish.samplers import DDIM

PAIRS, DRAWN, SEED = 96, 8, 0
PROMPTS = Portraits(about=("hair_color", "shirt_color"), count=16)
"""Those of the recipe `compressibility`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    policy = Policy(load("portraits", guidance=2.0), DDIM(num_steps=8))
    asked = PROMPTS.draw(PAIRS, Randomness(SEED))
    samples = sample(policy, [prompt for prompt in asked for _ in range(DRAWN)], seed=SEED)
    rewards = score(Compressibility(), samples).reshape(PAIRS, DRAWN)
    pairs, chosen = [], []
    for i, prompt in enumerate(asked):
        line = {"prompt": prompt.text, **prompt.metadata}
        places = {"chosen": rewards[i].argmax(), "rejected": rewards[i].argmin()}
        files = {key: f"{i:03d}-{key}.png" for key in places}
        for key, place in places.items():
            to_pil(samples.media[i * DRAWN + int(place)]).save(out / files[key], optimize=True)
        pairs.append({**line, **files})
        chosen.append({**line, "image": files["chosen"]})
    for name, lines in (("metadata.jsonl", pairs), ("chosen.jsonl", chosen)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (out / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
