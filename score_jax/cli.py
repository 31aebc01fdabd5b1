"""The command line of the scripts: a config file, overrides of its values, and errors in one line.

`--config=FILE` names a file with a `get_config()`; `--config.SECTION.OPTION=VALUE` overrides any
option that the named constructor has, also those that the file leaves at their defaults.
ml_collections' own flags apply overrides before those defaults are known, and let NaN and tuples of
another length pass, so the overrides are read here.
"""

import ast
import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from score_jax import build
from score_jax.build import ConfigError

PREFIX = "--config."


def run(main: Callable[[list[str]], int | None]):
    """Parses the flags, calls main(overrides) and exits with its code; the entry point of a script.

    `overrides` are the arguments that start with --config., to be given to `load_config`.
    """
    with user_errors():
        overrides, rest = _split(sys.argv)
        positional = flags.FLAGS(rest)[1:]
        if positional:
            raise ConfigError(f"stray argument {positional[0]!r}; options look like --name=value")
    use_compilation_cache()
    sys.exit(main(overrides))


@contextlib.contextmanager
def user_errors(*more: type[Exception]):
    """Ends the program with one line on stderr and exit code 2 if the user's input is at fault.

    Wrap what reads input (flags, config, data, workdir), not computation, whose errors deserve
    their trace. `more` are further exceptions that say all in their message.
    """
    try:
        yield
    except (ConfigError, ValueError, OSError, flags.Error, *more) as error:
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


def load_config(path: str, overrides: list[str]) -> ConfigDict:
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
        known = sorted(f"configs/{c.name}" for c in (checkout / "configs").glob("*_*.py"))
        raise ConfigError(
            f"no config file {path}; there are {', '.join(known) or 'none beside the script'}"
        )
    # so that a config file can say `from configs import common`
    for folder in (checkout, file.parent.parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None:
        raise ConfigError(f"config file {path} is no Python file; it must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # the file is the user's input, whatever it does
        raise ConfigError(f"config file {path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"config file {path}: get_config() must return an ml_collections.ConfigDict"
        )
    return override(config, overrides)


def override(
    config: ConfigDict, overrides: list[str], sections: tuple[str, ...] | None = None
) -> ConfigDict:
    """The resolved config after overrides "--config.a.b=value".

    An override of a section's name drops the options that the file gave to the other constructor.

    Args:
      sections: if given, the only ones that may be overridden.
    """
    parsed = [_parse(item) for item in overrides]
    for path, _ in parsed:
        if sections is not None and path[0] not in sections:
            where = ".".join(["config", *path])
            raise ConfigError(
                f"{where} is fixed by the run; only {', '.join(sections)} can be changed here"
            )
    for path, text in parsed:
        section = config.get(path[0])
        if path[1:] == ["name"] and isinstance(section, ConfigDict) and section.get("name") != text:
            config[path[0]] = ConfigDict({"name": text})
    config = build.resolve(config)
    for path, text in parsed:
        _set(config, path, text)
    return build.resolve(config)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The overrides, each as one string, and the other arguments."""
    overrides, rest, items = [], [], iter(argv)
    for item in items:
        if not item.startswith((PREFIX, PREFIX[1:])):
            rest.append(item)
        elif "=" in item:
            overrides.append(item)
        else:
            value = next(items, None)
            if value is None:
                raise ConfigError(f"{item} has no value; write {item}=VALUE")
            overrides.append(f"{item}={value}")
    return overrides, rest


def _parse(item: str) -> tuple[list[str], str]:
    key, text = item.lstrip("-").split("=", 1)
    return key.split(".")[1:], text


def _set(config: ConfigDict, path: list[str], text: str):
    """Sets the value at a path from its text, if it fits the value that is there."""
    where = ".".join(["config", *path])
    *sections, option = path
    node = config
    for section in sections:
        node = node.get(section) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or option not in node:
        near = ", ".join(node if isinstance(node, ConfigDict) else config)
        raise ConfigError(f"{where} does not exist; choose from {near}")
    old = node[option]
    if isinstance(old, ConfigDict):
        raise ConfigError(
            f"{where} is a section; choose from {', '.join(f'{where}.{k}' for k in old)}"
        )
    new = _value(where, text, old)
    with node.ignore_type():  # `build.resolve` checks the type, and knows unions
        node[option] = new


def _value(where: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    if isinstance(old, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        new = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        new = text
    if isinstance(old, tuple):
        if not isinstance(new, tuple) or len(new) != len(old):
            raise ConfigError(
                f"{where} is {text!r}; it must be {len(old)} values as in {','.join(map(str, old))!r}; "
                "another length is for the config file to set"
            )
    return new
