#!/usr/bin/env bash
# Makes the virtual environment of the peer, TRL 0.23.1, in build/peers/trl (git ignores it).
# Usage: benchmarks/peers/make_venv.sh [PYTHON]     (Python 3.11; running it again costs nothing)
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
peers="$(cd "$here/../.." && pwd)/build/peers"
pins="$here/trl_constraints.txt"
python="${1:-python3}"

if cmp -s "$pins" "$peers/trl/installed.txt"; then
    echo "$peers/trl/bin/python"
    exit 0
fi

mkdir -p "$peers"
echo '*' > "$peers/.gitignore"
"$python" -m venv --clear "$peers/trl"
# The pin on torch names a build without CUDA; an unpinned torch is several gigabytes.
"$peers/trl/bin/pip" install -qq --constraint "$pins" torch
"$peers/trl/bin/pip" install -qq --constraint "$pins" trl diffusers transformers peft accelerate pillow
cp "$pins" "$peers/trl/installed.txt"
echo "$peers/trl/bin/python"
