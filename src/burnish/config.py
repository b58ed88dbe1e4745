"""Recipes: TOML in, checked settings out. Nothing here loads torch or a weight.

A recipe is a tree of the dataclasses that use its fields. Unknown keys, wrong types and impossible
combinations raise `ConfigError` with the key and the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from burnish.algorithms.awm import AWM
from burnish.algorithms.critic import Critic
from burnish.algorithms.ddpo import DDPOIS, DDPOSF, PerPrompt, WholeBatch
from burnish.algorithms.dpo import D3PO, DPO, OfflineDPO
from burnish.algorithms.dpok import DPOK
from burnish.algorithms.draft import AlignProp, DRaFT, ReFL
from burnish.algorithms.exploration import Explores, Unguided, Wider
from burnish.algorithms.grpo import GRPO
from burnish.algorithms.nft import NFT
from burnish.algorithms.rwr import RWR, RWRSparse
from burnish.algorithms.sft import SFT, BestOf
from burnish.decays import CosineDecay, ExponentialDecay, LinearDecay
from burnish.models import trainable as weights
from burnish.models.trainable import Full, LoRA
from burnish.portraits.prompts import Portraits
from burnish.prompts import Listed, PromptFile
from burnish.rewards.image import Brightness, Compressibility, Incompressibility
from burnish.rewards.portraits import PortraitAlignment, PortraitLikelihood
from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.samplers.dpm import DPMSolver
from burnish.samplers.flow import CPS, DanceSDE, FlowODE, FlowSDE
from burnish.samplers.window import Window
from burnish.train.settings import AdamW, Training, check

Samplers = DDIM | DDPM | FlowODE | FlowSDE | DanceSDE | CPS | Window | DPMSolver


class ConfigError(ValueError):
    """A recipe that cannot be run; the message names the key and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str = "portraits"
    """An embedded model, a pipeline's folder, or a repository on the hub."""
    guidance: float = 5.0
    """Weight of classifier-free guidance, in sampling and in training; 1 for none."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the network's arithmetic and of the stored states; log-probabilities are float32 always."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A reward of one's own: `name = "module:attribute"`."""

    differentiable: ClassVar[bool] = True
    """As far as is known before it is first asked."""

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    every: int = 10
    """Iterations between two evaluations; the first and the last model are always evaluated."""
    prompts: int = 32
    """Held-out prompts, one sample each, always with the same noise."""
    sampler: Samplers | None = None
    """What draws them, and what `burnish sample` draws with; by default the sampler that is trained with."""

    def __post_init__(self) -> None:
        for name in ("every", "prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    every: int = 5
    """Iterations between two checkpoints; the last iteration always has one."""
    keep: int = 2
    """How many are kept; 2 or more, so that a damaged one has a predecessor."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 2:
            raise ValueError(
                f"every = {self.every} and keep = {self.keep}, expected every >= 1 and keep >= 2"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that a run depends on."""

    reward: (
        Compressibility
        | Incompressibility
        | Brightness
        | PortraitAlignment
        | PortraitLikelihood
        | Plugin
    )
    prompts: Portraits | Listed | PromptFile = field(default_factory=Portraits)
    model: Model = field(default_factory=Model)
    trainable: LoRA | Full = field(default_factory=LoRA)
    sampler: Samplers = field(default_factory=DDIM)
    algorithm: (
        DDPOIS
        | DDPOSF
        | GRPO
        | DPOK
        | RWR
        | RWRSparse
        | NFT
        | AWM
        | DPO
        | OfflineDPO
        | D3PO
        | SFT
        | BestOf
        | DRaFT
        | AlignProp
        | ReFL
    ) = field(default_factory=DDPOIS)
    training: Training = field(default_factory=Training)
    optimizer: AdamW = field(default_factory=AdamW)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    seed: int = 0
    """Of every random draw of the run."""

    def __post_init__(self) -> None:
        check(self.algorithm, self.training)
        weights.check(self.trainable, self.model.dtype)
        if self.algorithm.needs_density and self.sampler.deterministic:
            raise ValueError(
                f"sampler.name = {NAMES[type(self.sampler)]!r} with these settings makes every step "
                "deterministic, at once or when eta has fallen to its end, but the algorithm learns from the "
                "steps' densities; set sampler.eta above 0 (its `end`, if it falls), or take a sampler with "
                "noise"
            )
        if self.algorithm.differentiates_reward and not self.reward.differentiable:
            raise ValueError(
                f"algorithm.name = {NAMES[type(self.algorithm)]!r} differentiates the reward, but "
                f"reward.name = {NAMES[type(self.reward)]!r} has no gradient; take a differentiable reward, "
                "or an algorithm that needs none, such as ddpo-is"
            )
        if self.algorithm.differentiates_reward:
            _check_walked(NAMES[type(self.algorithm)], self.sampler)
        if isinstance(self.algorithm, Explores):
            _check_exploration(self.algorithm, self.model)
        _check_steps(self.algorithm.train_steps, self.sampler.num_steps)
        if isinstance(self.sampler, Window):
            _check_window(self.algorithm.train_steps, self.sampler)


NAMES: Mapping[type, str] = {
    AlignProp: "align-prop",
    AWM: "awm",
    BestOf: "best-of",
    Brightness: "brightness",
    Compressibility: "compressibility",
    CosineDecay: "cosine",
    CPS: "cps",
    Critic: "critic",
    D3PO: "d3po",
    DanceSDE: "dance-sde",
    DDIM: "ddim",
    DDPM: "ddpm",
    DDPOIS: "ddpo-is",
    DDPOSF: "ddpo-sf",
    DPMSolver: "dpm-solver",
    DPO: "dpo",
    DPOK: "dpok",
    DRaFT: "draft",
    ExponentialDecay: "exponential",
    FlowODE: "flow-ode",
    FlowSDE: "flow-sde",
    Full: "full",
    GRPO: "grpo",
    Incompressibility: "incompressibility",
    LinearDecay: "linear",
    Listed: "list",
    LoRA: "lora",
    NFT: "nft",
    OfflineDPO: "offline-dpo",
    PerPrompt: "per-prompt",
    PortraitAlignment: "portrait-alignment",
    PortraitLikelihood: "portrait-likelihood",
    Portraits: "portraits",
    PromptFile: "file",
    ReFL: "refl",
    RWR: "rwr",
    RWRSparse: "rwr-sparse",
    SFT: "sft",
    Unguided: "unguided",
    WholeBatch: "whole-batch",
    Wider: "wider",
    Window: "window",
}
"""What a table's `name` calls a class where there is a choice."""


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (shipped, or a path that ends in .toml) under `--table.key value` overrides.

    An override of a table's `name` takes another class, and starts that table anew. So does a file over
    the recipe that its `base` names.
    Raises ConfigError.
    """
    table = _with_bases(name)
    for key, value in _parsed(overrides):
        for part in reversed(key.split(".")):
            value = {part: value}
        table = merge(table, value)
    return build(Recipe, table, "")


def _with_bases(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The recipe's table over that of its `base`: a shipped recipe, or a .toml file beside it."""
    path = recipe_path(name)
    if path in above:
        raise ConfigError(f"{path} is its own base, by way of {', '.join(map(str, above))}")
    table = read_table(path)
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise ConfigError(f"base = {base!r}, expected the name of a recipe")
    beside = str(path.parent / base) if base.endswith(".toml") else base
    return merge(_with_bases(beside, (*above, path)), table)


def recipe_path(name: str) -> Path:
    return shipped_path(name, "recipe")


def shipped() -> list[str]:
    return _shipped("recipe")


def shipped_path(name: str, kind: str) -> Path:
    """The file of a shipped `kind` (recipe, grid) by its name, or of one's own, which ends in .toml."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ConfigError(f"{kind} {name!r}: there is no such file")
        return Path(name)
    if name not in _shipped(kind):
        raise ConfigError(f"there is no {kind} {name!r}{_nearest(name, _shipped(kind))}")
    return _folder(kind) / f"{name}.toml"


def _shipped(kind: str) -> list[str]:
    return sorted(path.stem for path in _folder(kind).glob("*.toml"))


def _folder(kind: str) -> Path:
    return Path(str(files("burnish") / f"{kind}s"))


def read_table(path: Path) -> dict[str, Any]:
    """The TOML of a file. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def merge(table: Mapping[str, Any], over: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`table` with the fields of `over` in their place, table by table.

    Another `name` takes another class, and starts its table anew; one in the place of a number does too.
    path: the dotted key of both, for messages
    """
    anew = "name" in over and over["name"] != table.get("name")
    merged = {} if anew else dict(table)
    for key, value in over.items():
        if isinstance(value, Mapping):
            inner, whole = merged.get(key, {}), _join(path, key)
            if not isinstance(inner, Mapping) and "name" in value:
                inner = {}
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{whole}.{next(iter(value), '')}: {whole} is not a table")
            merged[key] = merge(inner, value, whole)
        else:
            merged[key] = value
    return merged


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, every field written out but those that are None."""
    return tomli_w.dumps(as_table(recipe))


def build(hint: Any, value: Any, path: str, default: Any = dataclasses.MISSING) -> Any:
    """`value` (of TOML types) as the type `hint`.

    path: its dotted key, for messages
    default: what the field is where it is left out. A table is laid over it, if it is one of the classes;
        else a table without a `name` is of the first class
    """
    classes = [
        kind for kind in _options(hint) if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]
    if not classes:
        return _plain(hint, value, path)
    if not isinstance(value, Mapping):
        return _instead_of_a_table(hint, classes, value, path)
    table = merge(as_table(default), value, path) if type(default) in classes else dict(value)
    named = any(cls in NAMES for cls in classes)
    cls = _chosen(classes, table, path, default) if named else classes[0]
    return _construct(cls, table, path)


def _construct(cls: type, table: dict[str, Any], path: str) -> Any:
    hints = _hints(cls)
    for key in table:
        if key not in hints:
            raise ConfigError(f"{_join(path, key)}: there is no such key{_nearest(key, hints)}")
    fields = {each.name: each for each in dataclasses.fields(cls)}
    for name, each in fields.items():
        required = each.default is each.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise ConfigError(f"{_join(path, name)} is missing, and it has no default")
    values = {
        key: build(hints[key], value, _join(path, key), _default(fields[key]))
        for key, value in table.items()
    }
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(_join(path, str(error))) from error


def _default(field: dataclasses.Field[Any]) -> Any:
    """What the field is where it is left out; MISSING if it must not be."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _chosen(classes: Sequence[type], table: dict[str, Any], path: str, default: Any) -> type:
    """The class that `table`'s `name` calls; the name is taken out."""
    name = table.pop("name", None)
    if name is None and default is not dataclasses.MISSING:
        return classes[0]
    if not isinstance(name, str):
        raise ConfigError(f"{path}.name is missing, expected one of: {_choices(classes)}")
    if Plugin in classes and ":" in name:
        table["target"] = name
        return Plugin
    named = {NAMES[cls]: cls for cls in classes if cls is not Plugin}
    if name not in named:
        raise ConfigError(f"{path}.name = {name!r}: there is no such one{_nearest(name, named)}")
    return named[name]


def _plain(hint: Any, value: Any, path: str, otherwise: str = "") -> Any:
    if isinstance(value, list):
        value = tuple(value)
    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        raise ConfigError(f"{path} = {value!r}, expected {what}{otherwise}") from error


def _instead_of_a_table(hint: Any, classes: Sequence[type], value: Any, path: str) -> Any:
    """A number or the like, where `hint` has it beside its classes."""
    plain = [kind for kind in _options(hint) if kind not in (*classes, types.NoneType)]
    table = f"a table ({_choices(classes)})"
    if not plain:
        raise ConfigError(f"{path} = {value!r}, expected {table}")
    return _plain(Union[tuple(plain)], value, path, f", or {table}")  # noqa: UP007


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@cache
def _hints(cls: type) -> dict[str, Any]:
    names = {each.name for each in dataclasses.fields(cls)}
    return {name: hint for name, hint in get_type_hints(cls).items() if name in names}


def _choices(classes: Sequence[type]) -> str:
    names = [NAMES[cls] for cls in classes if cls is not Plugin and cls in NAMES]
    return ", ".join([*names, *(["module:attribute"] if Plugin in classes else [])])


def _nearest(key: str, valid: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(sorted(valid))}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Pairs from `--key value` and `--key=value`."""
    pairs, rest = [], list(overrides)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} was not expected; an override reads --table.key value")
        key, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"{word} has no value; an override reads --table.key value")
            text = rest.pop(0)
        pairs.append((key, _literal(text)))
    return pairs


def _literal(text: str) -> Any:
    """A TOML value; what is none is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_walked(algorithm: str, sampler: Samplers) -> None:
    solved = isinstance(sampler, DPMSolver)
    if solved or (isinstance(sampler, Window) and sampler.tail is not None):
        key = "sampler.name = 'dpm-solver'" if solved else "sampler.tail"
        raise ValueError(
            f"algorithm.name = {algorithm!r} differentiates through the sampler's last steps, but {key} has "
            "a solver in their place; leave it out (evaluation.sampler may be one)"
        )


def _check_steps(train_steps: int | tuple[int, ...] | None, num_steps: int) -> None:
    last = max(train_steps) if isinstance(train_steps, tuple) else (train_steps or 1) - 1
    if last >= num_steps:
        raise ValueError(
            f"algorithm.train_steps = {train_steps} does not fit sampler.num_steps = {num_steps}"
        )


def _check_exploration(algorithm: Explores, model: Model) -> None:
    if isinstance(algorithm.exploration, Unguided) and model.guidance == 1:
        raise ValueError(
            "algorithm.exploration.name = 'unguided' leaves classifier-free guidance out, but model.guidance "
            "= 1 has none; set model.guidance above 1, or take algorithm.exploration.name = 'wider'"
        )


def _check_window(train_steps: int | tuple[int, ...] | None, window: Window) -> None:
    listed = train_steps if isinstance(train_steps, tuple) else ()
    inside = range(window.start, window.start + window.size)
    if window.move != "fixed" and listed:
        raise ValueError(
            f"algorithm.train_steps = {list(listed)}, but sampler.move = {window.move!r}: a window that "
            "moves does not always hold these steps; leave train_steps out, or give a number"
        )
    if not set(listed) <= set(inside):
        raise ValueError(
            f"algorithm.train_steps = {list(listed)} does not fit the sampler's window, which holds "
            f"the steps {list(inside)}"
        )
    if isinstance(train_steps, int) and train_steps > window.size:
        raise ValueError(
            f"algorithm.train_steps = {train_steps} does not fit sampler.size = {window.size}"
        )


def as_table(value: Any) -> Any:
    """A recipe, or a part of it, of TOML types; fields that are None are left out."""
    if not dataclasses.is_dataclass(value):
        return value
    if isinstance(value, Plugin):
        return {"name": value.target}
    fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    inner = {key: as_table(item) for key, item in fields.items() if item is not None}
    name = NAMES.get(type(value))
    return inner if name is None else {"name": name, **inner}
