"""Checkpoints of a run's state, by orbax: asynchronous, the newest few kept, none half-written taken for whole."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints in a folder.

    Args:
      folder: WORKDIR/checkpoints; created when the first checkpoint is saved.
      keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = Path(folder).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "unlogged": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, unlogged: list[dict[str, float]]):
        """Saves in the background; returns when the state has left the device.

        Args:
          unlogged: metrics of the steps since the last logged row, so that a resumed run logs the
            same means.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), unlogged=ocp.args.JsonSave(unlogged)
        )
        self._manager.save(step, args=args)

    def restore(self, step: int, template: Any) -> Any:
        """The state saved at a step.

        Args:
          template: a state of the same structure, shapes and dtypes.
        Raises:
          ValueError: the checkpoint holds something else.
        """
        saved = self._manager.item_metadata(step).state
        wanted = jax.tree.map(lambda a: (tuple(a.shape), str(a.dtype)), template)
        found = jax.tree.map(lambda a: (tuple(a.shape), str(a.dtype)), saved)
        _check(_named(wanted), _named(found), self.folder / str(step))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(template)))
        return self._manager.restore(step, args=args).state

    def unlogged(self, step: int) -> list[dict[str, float]]:
        """The metrics saved with a step's state; none before the first step."""
        if step == 0:
            return []
        args = ocp.args.Composite(unlogged=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args).unlogged

    def wait(self):
        """Returns when all saves are on disk."""
        self._manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.wait()


def _abstract(template: Any) -> Any:
    """Where to restore to: shapes and dtypes on the first device, wherever the checkpoint was made."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), template)


def _named(tree: Any) -> dict[str, Any]:
    is_leaf = lambda node: isinstance(node, tuple) and len(node) == 2 and isinstance(node[1], str)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    # orbax writes NamedTuple fields and indices as dictionary keys
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check(wanted: dict, found: dict, where: Path):
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"checkpoint {where} does not fit this config: {name} is {found.get(name, 'missing')} there, "
                f"{wanted.get(name, 'absent')} here; use the config it was trained with"
            )
