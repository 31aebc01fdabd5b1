"""The command line of the scripts: a config file, overrides of its values, and errors in one line.

`--config=FILE` names a file with a `get_config()`; `--config.SECTION.OPTION=VALUE` overrides any
option that the named constructor has, also those that the file leaves at their defaults.
ml_collections' own flags apply overrides before those defaults are known, and let NaN and tuples of
another length pass, so the overrides are read here.
"""

import ast
import contextlib
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict

from score_jax import build, workdir
from score_jax.build import Config, ConfigError

PREFIX = "--config."


def run(
    main: Callable[[list[str]], int],
    *,
    required: flags.FlagHolder,
    start: Callable[[], None] = lambda: None,
):
    """Parses the flags, calls main(overrides) and exits with its code; the entry point of a script.

    Args:
      main: `overrides` are the arguments that start with --config., to be given to `load_config` or
        `load_run`.
      required: the flag that must be given.
      start: called when the flags are known, before anything asks JAX for its devices.
    """
    arguments = sys.argv[1:]
    # absl's own --help exits with code 1
    for help_flag, short in {"--help": True, "-h": True, "--helpfull": False}.items():
        if help_flag in arguments:
            app.usage(shorthelp=short, writeto_stdout=True, exitcode=0)
    with user_errors():
        overrides = [item for item in arguments if item.startswith(PREFIX)]
        rest = [item for item in arguments if not item.startswith(PREFIX)]
        positional = flags.FLAGS([sys.argv[0], *rest])[1:]
        if positional:
            raise ConfigError(
                f"stray argument {positional[0]!r}; options look like --name=value or {PREFIX}SECTION.OPTION=VALUE"
            )
        if not required.value:
            raise ConfigError(f"--{required.name} is missing; --help lists the options")
        start()
        _check_platform()
    use_compilation_cache()
    try:
        sys.exit(main(overrides))
    except KeyboardInterrupt:
        sys.exit(130)


def _check_platform():
    """Raises ConfigError if JAX finds none of the devices that it was told to use."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms
        raise ConfigError(
            f"JAX cannot start the platform {platforms!r} ({str(error) or type(error).__name__}); "
            "set JAX_PLATFORMS to one that this machine has, as JAX_PLATFORMS=cpu"
        ) from error


@contextlib.contextmanager
def user_errors():
    """Ends the program with one line on stderr and exit code 2 if the user's input is at fault.

    Wrap what reads input (flags, config, data, workdir), not computation, whose errors deserve
    their trace.
    """
    try:
        yield
    except (ValueError, OSError, flags.Error) as error:
        line = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        sys.exit(2)


def use_compilation_cache():
    """Keeps compiled programs in the user's cache folder, so that a second run of a config starts at once.

    JAX_COMPILATION_CACHE_DIR chooses another folder; JAX_ENABLE_COMPILATION_CACHE=false turns it
    off.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "score_jax" / "xla"))


def load_config(path: str, overrides: list[str]) -> Config:
    """The resolved config of a file with overrides applied.

    Args:
      path: looked for from the current folder, then from the folder above the script's.
      overrides: "--config.a.b=value" each.
    Raises:
      ConfigError: one line on what is wrong.
    """
    checkout = Path(sys.argv[0]).resolve().parent.parent
    candidates = [Path(path).expanduser(), checkout / path]
    file = next((c.resolve() for c in candidates if c.is_file()), None)
    if file is None:
        known = sorted(f"configs/{c.name}" for c in (checkout / "configs").glob("[a-z]*_*.py"))
        raise ConfigError(f"no config file {path}; {build.choose(path, known)}")
    # so that a config file can say `from configs import common`
    for folder in (checkout, file.parent.parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        config = get_config() if callable(get_config) else None
    except Exception as error:  # the file is the user's input, whatever it does
        raise ConfigError(f"config file {path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"config file {path} must define get_config(), which returns an ml_collections.ConfigDict"
        )
    return override(config.to_dict(), overrides)


def load_run(folder: Path, overrides: list[str], section: str) -> Config:
    """The config that a run's folder holds, with overrides of what is not fixed by the run.

    Those are one section, and where the data are.

    Raises:
      ConfigError, FileNotFoundError: one line on what is wrong.
    """
    saved = workdir.load_config(folder)
    try:
        saved = build.resolve(saved)
    except ConfigError as error:
        raise ConfigError(
            f"{folder}/config.json: {error}; was another version of score_jax used? see run.json there"
        ) from error
    for item in overrides:
        key = item.removeprefix("--").partition("=")[0]
        if key.removeprefix("config.") not in workdir.FREE and not f"{key}.".startswith(
            f"config.{section}."
        ):
            raise ConfigError(
                f"{key} is fixed by the run in {folder}; only config.{section} and where the data are "
                "can be changed here"
            )
    return override(saved, overrides)


def override(config: Config, overrides: list[str]) -> Config:
    """The resolved config after overrides "--config.a.b=value".

    An override of a section's name drops the options that the file gave to the other constructor.
    """
    parsed = [_parse(item) for item in overrides]
    tree = dict(config)
    for section, option, text in parsed:
        options = tree.get(section, {})
        if option == "name" and isinstance(options, dict) and options.get("name") != text:
            tree[section] = {"name": text}
    # now the defaults are there too: an option's value tells how to read its override
    tree = build.resolve(tree)
    for section, option, text in parsed:
        old = tree.get(section)
        if option:
            options = old if isinstance(old, dict) else {}
            where = f"config.{section}.{option}"
            tree[section] = options | {option: _value(where, text, options.get(option))}
        else:
            tree[section] = _value(f"config.{section}", text, old)
    return build.resolve(tree)


def _parse(item: str) -> tuple[str, str, str]:
    """Section, option and value of an override; the option is empty in --config.seed=1."""
    key, equals, text = item.removeprefix(PREFIX).partition("=")
    if not equals:
        raise ConfigError(f"{item} has no value; write {item}=VALUE, without spaces")
    section, _, option = key.partition(".")
    return section, option, text


def _value(where: str, text: str, old: Any) -> Any:
    """The value that a text stands for, where `old` is the value so far; `build.resolve` checks its type."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    new = _literal(text)
    if isinstance(old, tuple):
        if len(old) <= 1 and isinstance(new, (int, float)):
            new = (new,)
        # one that is empty may get any number of values
        if not isinstance(new, tuple) or (old and len(new) != len(old)):
            how = (
                f"have {len(old)} value{'s' * (len(old) != 1)}, as {old}" if old else "be as (1, 2)"
            )
            raise ConfigError(
                f"{where} is {text!r}; it must {how}; another number of them is for the config file to set"
            )
    return new


def _literal(text: str) -> Any:
    with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    with contextlib.suppress(ValueError):
        return float(text)  # nan and inf, to be refused as numbers
    return text
