"""The command line. Only what a command needs is imported, when it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if all is well, 2 for a user's mistake, 130 if interrupted."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command not in ("train", "serve-reward", "fit-preference"):
        _parser().error(f"unrecognised arguments: {' '.join(rest)}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return _COMMANDS[options.command](options, rest)
    except (ValueError, RuntimeError) as error:
        if not _is_ours(error):
            raise
        print(f"burnish: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("burnish: interrupted; go on with --resume", file=sys.stderr)
        return 130


def _is_ours(error: BaseException) -> bool:
    """True if burnish raised it, so that it speaks to the user; any other shows its traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("burnish.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="burnish", description="Fine-tune diffusion models with reinforcement learning."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="run a recipe",
        description="Run a recipe. Any field of it can be set: --training.iterations 20",
        epilog="Shipped recipes: see `burnish recipes`.",
    )
    train.add_argument("recipe", help="name of a shipped recipe, or a .toml file")
    train.add_argument(
        "--out", type=Path, help="run folder (default: runs/RECIPE, or the next free)"
    )
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")

    sample = commands.add_parser("sample", help="draw before and after from a finished run")
    sample.add_argument("run", type=Path, help="run folder")
    sample.add_argument("--prompt", action="append", required=True, help="may be given repeatedly")
    sample.add_argument("--count", type=int, default=4, help="samples a prompt (default 4)")
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    sample.add_argument("--out", type=Path, help="folder (default: RUN/drawn)")

    bench = commands.add_parser(
        "bench",
        help="compare algorithms over a grid of runs",
        description="Run a grid of rewards, algorithms and seeds, and write the page that compares them. "
        "The same command again goes on where it was stopped.",
    )
    bench.add_argument("grid", help="name of a shipped grid, or a .toml file")
    bench.add_argument("--out", type=Path, help="folder (default: runs/bench/GRID)")
    bench.add_argument("--jobs", type=int, help="cells at a time (default: the grid's)")
    bench.add_argument("--page", action="store_true", help="write the page only; run nothing")

    report = commands.add_parser("report", help="draw the HTML report of a run")
    report.add_argument("run", type=Path, help="run folder")

    serve = commands.add_parser(
        "serve-reward",
        allow_abbrev=False,  # else a setting of the reward could be taken for the start of an option
        help="offer a reward over HTTP",
        description="Offer a reward over HTTP, for recipes whose reward is `remote`. Any setting of the "
        "reward can be given: --quality 90",
    )
    serve.add_argument(
        "reward", help="name, module:attribute, or a .toml file with a table [reward]"
    )
    serve.add_argument("--port", type=int, required=True, help="0 for any that is free")
    serve.add_argument("--host", default="127.0.0.1", help="address (default: this machine alone)")
    token = serve.add_mutually_exclusive_group()
    token.add_argument(
        "--token-file", type=Path, help="file with the token that clients must bring"
    )
    token.add_argument("--token-variable", help="environment variable with the token")
    serve.add_argument("--max-bytes", type=int, help="largest request (default: 128 MiB)")
    serve.add_argument(
        "--at-once", type=int, default=1, help="calls of the reward at a time (default 1)"
    )

    fit = commands.add_parser(
        "fit-preference",
        allow_abbrev=False,
        help="learn a reward model from pairs of images",
        description="Learn a reward model from pairs of images of which one was preferred, for recipes whose "
        "reward is `preference`. Any setting can be given: --features.name clip --head.l2 0.1",
    )
    fit.add_argument(
        "pairs", help="a JSON Lines file with prompt, chosen and rejected, or a folder with one"
    )
    fit.add_argument("--out", type=Path, required=True, help="folder for the model")

    recipes = commands.add_parser("recipes", help="list the shipped recipes, or show one whole")
    recipes.add_argument("name", nargs="?", help="show this one with all its fields")
    return parser


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from burnish.config import load_recipe

    recipe = load_recipe(options.recipe, overrides)

    from burnish.experiment import run
    from burnish.folder import RunFolder, choose

    folder = RunFolder(options.out or choose(Path(options.recipe).stem, resume=options.resume))
    print(f"Run folder: {folder.path}", flush=True)
    if not run(recipe, folder, resume=options.resume):
        return 130
    print(f"Weights: {folder.weights}\nReport:  {folder.report}")
    return 0


def _sample(options: argparse.Namespace, rest: Sequence[str]) -> int:
    del rest
    from burnish.draw import draw

    for path in draw(options.run, options.prompt, options.count, options.seed, options.out):
        print(path)
    return 0


def _bench(options: argparse.Namespace, rest: Sequence[str]) -> int:
    del rest
    from burnish.bench.grid import load_grid, with_jobs

    grid, cells = load_grid(options.grid)
    if options.jobs is not None:
        grid = with_jobs(grid, options.jobs)

    from burnish.bench.run import bench

    name = Path(options.grid).stem
    return bench(name, grid, cells, options.out or Path("runs/bench", name), run=not options.page)


def _report(options: argparse.Namespace, rest: Sequence[str]) -> int:
    del rest
    from burnish.folder import RunFolder
    from burnish.report import build

    print(build(RunFolder(options.run)))
    return 0


def _serve_reward(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from burnish.config import load_reward

    reward = load_reward(options.reward, overrides)

    from burnish.experiment import resolve
    from burnish.serving import server, tokens
    from burnish.tables import as_table

    token = None
    if options.token_file is not None:
        token = tokens.from_file(options.token_file)
    elif options.token_variable is not None:
        token = tokens.from_variable(options.token_variable)
    offer = server.Offer(
        reward=resolve(reward),
        about=as_table(reward),
        token=token,
        max_bytes=server.MAX_BYTES if options.max_bytes is None else options.max_bytes,
        at_once=options.at_once,
    )
    with server.serving(offer, options.host, options.port) as running:
        print(f"Reward {offer.about['name']} at {running.url}; Ctrl-C ends it", flush=True)
        try:
            running.wait()
        except KeyboardInterrupt:
            print("Stopped.")
    return 0


def _fit_preference(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from burnish.config import load_fitting

    fitting = load_fitting(overrides)

    from burnish.preference.fit import fit_preference

    for name, found in fit_preference(options.pairs, options.out, fitting).items():
        print(
            f"{name.replace('_', ' '):10} {found['pairs']:6} pairs   accuracy {found['accuracy']:.3f} "
            f"+- {found['accuracy_error']:.3f}   log-loss {found['log_loss']:.3f} nats"
        )
    print(f"A coin has accuracy 0.5 and log-loss 0.693. Model: {options.out}")
    return 0


def _recipes(options: argparse.Namespace, rest: Sequence[str]) -> int:
    del rest
    from burnish.config import dump, load_recipe, recipe_path, shipped

    if options.name:
        print(dump(load_recipe(options.name)), end="")
        return 0
    for name in shipped():
        headline = recipe_path(name).read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:24} {headline.lstrip('# ')}")
    return 0


_COMMANDS = {
    "train": _train,
    "sample": _sample,
    "bench": _bench,
    "report": _report,
    "serve-reward": _serve_reward,
    "fit-preference": _fit_preference,
    "recipes": _recipes,
}
