"""A sweep: which trials there are, what each is called, and that all of them can run, before any does.

A trial is a config with overrides of its own, as {"optim.lr": 3e-4, "train.ema": (0.99,)}. It is
named after them, so that the same trial has the same folder in every sweep that contains it.
"""

import hashlib
import itertools
import json
import math
import re
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_jax import build, cli
from score_jax.build import Config, ConfigError
from score_jax.files import write_text
from score_jax.workdir import FREE, flat

Overrides = dict[str, Any]

_MOST = 10_000  # trials; a generator may have no end
_LONGEST = 100  # characters of a name
_PLAIN = re.compile(r"(?!(?:None|True|False|nan|inf)$)[A-Za-z][A-Za-z0-9_.+-]*")


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its folder.
      overrides: "SECTION.OPTION" -> the value that its config then has.
      config: resolved.
    """

    name: str
    overrides: Overrides
    config: Config


def read(path: str, checkout: Path) -> list[Overrides]:
    """What the `get_overrides()` of a file yields, looked for from the current folder, then from the checkout.

    Raises:
      ConfigError: one line on what is wrong.
    """
    candidates = [Path(path).expanduser(), checkout / path]
    file = next((c for c in candidates if c.is_file()), None)
    if file is None:
        known = sorted(
            f"configs/sweeps/{c.name}" for c in (checkout / "configs" / "sweeps").glob("[a-z]*.py")
        )
        raise ConfigError(f"no sweep file {path}; {build.choose(path, known)}")
    try:
        generator = runpy.run_path(str(file)).get("get_overrides")
        made = list(itertools.islice(generator(), _MOST + 1)) if callable(generator) else []
    except Exception as error:  # the file is the user's input, whatever it does
        raise ConfigError(f"sweep file {path}: {type(error).__name__}: {error}") from error
    if not made or not all(isinstance(overrides, dict) for overrides in made):
        raise ConfigError(
            f"sweep file {path} must define get_overrides(), which yields a dict for each trial, as "
            '{"optim.lr": 3e-4}'
        )
    if len(made) > _MOST:
        raise ConfigError(f"sweep file {path} yields more than {_MOST} trials; let it yield fewer")
    return made


def gathered(arguments: list[str]) -> list[str]:
    """The command line with each word after --grid, up to the next flag, as a --grid=WORD."""
    result, inside = [], False
    for word in arguments:
        if word.startswith("-"):
            inside = word.lstrip("-").partition("=")[0] == "grid"
            if word in ("--grid", "-grid"):
                continue
        elif inside:
            word = f"--grid={word}"
        result.append(word)
    return result


def grid(words: Iterable[str]) -> list[Overrides]:
    """The product of words KEY=VALUE,VALUE,...; the last key changes fastest.

    Raises:
      ConfigError: a word is none, or is a range.
    """
    choices = _choices(words)
    for key, values in choices.items():
        if isinstance(values, _Range):
            raise ConfigError(
                f"--grid {key}={values.text} is a range; list values, as {key}={values.low:g},"
                f"{values.high:g}, or draw from it by --random=N"
            )
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


def random(words: Iterable[str], n: int, seed: int) -> list[Overrides]:
    """n different draws, of which the first are those of a smaller n.

    A word is KEY=VALUE,VALUE,... for one of these, KEY=LOW..HIGH for a log-uniform number, KEY=LOW:HIGH
    for a uniform one. Numbers have three digits; they are whole if both ends are written so.

    Raises:
      ConfigError: a word is none of these, or there are fewer different draws than n.
    """
    choices, rng = _choices(words), np.random.default_rng(seed)
    found = {}
    for _ in range(100 * n):
        if len(found) == n:
            break
        draw = {
            key: values.draw(rng)
            if isinstance(values, _Range)
            else values[int(rng.integers(len(values)))]
            for key, values in choices.items()
        }
        found.setdefault(json.dumps(draw), draw)
    if len(found) < n:
        raise ConfigError(
            f"--random={n}, but --grid has only {len(found)} different trials; ask for fewer, or "
            "leave out --random for all of them"
        )
    return list(found.values())


class _Range(NamedTuple):
    text: str
    low: float
    high: float
    is_log: bool
    is_whole: bool

    def draw(self, rng: np.random.Generator) -> str:
        u, width = rng.random(), self.high - self.low
        value = self.low * (self.high / self.low) ** u if self.is_log else self.low + width * u
        return str(round(value)) if self.is_whole else f"{value:.3g}"


def _choices(words: Iterable[str]) -> dict[str, list[str] | _Range]:
    choices = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals and text):
            raise ConfigError(
                f"--grid {word!r} is no SECTION.OPTION=VALUE,VALUE; as --grid optim.lr=1e-4,3e-4"
            )
        if key in choices:
            raise ConfigError(f"--grid has {key} twice; list all its values in one word")
        choices[key] = _range(key, text) or _split(text)
    return choices


def _range(key: str, text: str) -> _Range | None:
    for sign in ("..", ":"):
        ends = text.split(sign)
        try:
            low, high = map(float, ends)
        except ValueError:
            continue
        is_log = sign == ".."
        if not (-math.inf < low < high < math.inf and (low > 0 or not is_log)):
            raise ConfigError(
                f"--grid {key}={text} must go up{' from above 0' if is_log else ''}, as "
                f"{key}=1e-5{sign}1e-2"
            )
        is_whole = all(end.strip().lstrip("-").isdecimal() for end in ends)
        return _Range(text, low, high, is_log, is_whole)
    return None


def _split(text: str) -> list[str]:
    """At commas outside brackets."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text)]


def trials(config_file: str, shared: list[str], found: list[Overrides], metric: str) -> list[Trial]:
    """The trials of a sweep, each checked as far as it can be without training. Reads the data.

    Args:
      config_file: as given to `cli.load_config`.
      shared: overrides "--config.SECTION.OPTION=VALUE" of all trials.
      found: what each trial overrides; texts as on the command line, or values.
      metric: by which trials are to be compared.
    Raises:
      ConfigError: one line on the first trial that cannot work.
    """
    fixed = {item.removeprefix(cli.PREFIX).partition("=")[0] for item in shared}
    result = {}
    for i, overrides in enumerate(found, 1):
        for key in overrides:
            if not isinstance(key, str) or key in fixed:
                raise ConfigError(
                    f"trial {i} overrides {key!r}, which must be a SECTION.OPTION that "
                    f"{cli.PREFIX}SECTION.OPTION=VALUE does not set for all trials"
                )
        try:
            trial = _trial(config_file, shared, overrides, metric)
        except (ValueError, OSError) as error:
            what = ", ".join(f"{key}={_text(value)}" for key, value in overrides.items())
            raise ConfigError(f"trial {i} ({what}): {error}") from error
        if trial.name in result:
            raise ConfigError(f"trial {i} is another's twin: {trial.name}; leave one out")
        result[trial.name] = trial
    return list(result.values())


def _trial(config_file: str, shared: list[str], overrides: Overrides, metric: str) -> Trial:
    config = cli.load_config(config_file, [*shared, *arguments(overrides)])
    build.check_batch_size(config["train"]["batch_size"], config["train"]["accumulate"])
    build.check_steps_per_call(config)
    experiment = build.experiment(config)
    why = experiment.no_bits or experiment.no_elbo
    if metric == "val_elbo" and why:
        raise ConfigError(f"--metric=val_elbo, but {why}; compare by --metric=val_loss")
    values = {key: _at(config, key) for key in overrides}
    return Trial(name(values), values, config)


def arguments(overrides: Overrides) -> list[str]:
    """The overrides as train.py takes them."""
    return [f"{cli.PREFIX}{key}={_text(value)}" for key, value in overrides.items()]


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, str) else repr(value)


def _at(config: Config, key: str) -> Any:
    section, _, option = key.partition(".")
    return config[section][option] if option else config[section]


def name(overrides: Overrides) -> str:
    """A folder's name for a trial: no two trials share one, in whatever order their keys are.

    It ends in a digest if the values have other letters than file names should, or are too long.
    """
    parts = {key: _word(overrides[key]) for key in sorted(overrides)}
    plain = ",".join(f"{key}={word}" for key, word in parts.items()) or "base"
    if None not in parts.values() and len(plain) <= _LONGEST:
        return plain
    exact = json.dumps({key: overrides[key] for key in sorted(overrides)})
    readable = ",".join(f"{key}={overrides[key]}" for key in parts)
    readable = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", readable)[: _LONGEST - 10]
    return f"{readable}~{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def _word(value: Any) -> str | None:
    """The value in a name; None if it is not fit for one."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else None
    if isinstance(value, tuple):
        words = [_word(entry) for entry in value]
        return None if None in words else "x".join(words)
    return repr(value)


def keep(folder: Path, base: Config, trials: list[Trial], commands: dict[str, str]) -> dict:
    """Adds trials to the folder's sweep.json, and returns what it then holds.

    That is "base", the config that they override, and "trials": name -> "overrides", "steps" and
    "command".

    Raises:
      ValueError: the folder is that of a sweep of another config, or of a run.
    """
    path, base = folder / "sweep.json", json.loads(json.dumps(base))
    held = load(folder) if path.exists() else {"base": base, "trials": {}}
    # an option that is newer than the sweep has its default there
    old, new = flat(json.loads(json.dumps(build.resolve(held["base"])))), flat(base)
    for key in old | new:
        if key not in FREE and old.get(key) != new.get(key):
            raise ValueError(
                f"{folder} holds a sweep over config.{key} = {old.get(key)!r}, not {new.get(key)!r}; "
                "give another --workdir"
            )
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a run, no sweep; give another --workdir")
    added = {
        trial.name: {
            "overrides": trial.overrides,
            "steps": trial.config["train"]["steps"],
            "command": commands[trial.name],
        }
        for trial in trials
    }
    held = {"base": base, "trials": held["trials"] | added}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write in {folder}: {error.strerror}; give another --workdir"
        ) from error
    write_text(path, json.dumps(held, indent=2) + "\n")
    return load(folder)


def load(folder: Path) -> dict:
    """What `keep` wrote.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    path = folder / "sweep.json"
    try:
        held = json.loads(path.read_text())
        _ = [entry["overrides"] | {"": entry["steps"]} for entry in held["trials"].values()]
        return held | {"base": dict(held["base"])}
    except FileNotFoundError as error:
        raise ValueError(
            f"no sweep in {folder}: sweep.json is missing; start one with scripts/sweep.py --config=FILE"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged; restore it or use another --workdir") from error
