"""Training, validation and test examples, from the splits that a set has or out of its training examples."""

from score_jax.data.base import Split, hold_out


def complete(
    train: Split,
    validation: Split | None,
    test: Split | None,
    n_validation: int | None,
    n_test: int | None,
    where: str,
) -> tuple[Split, Split, Split]:
    """Train, validation and test; what is None is held out of train, evenly spaced, test first.

    Args:
      n_validation, n_test: how many to hold out; None means a tenth of what there is. They must be
        None for a split that is given.
      where: the set's name or file, for the error messages.
    """
    train, test = _one(train, test, "test", n_test, where)
    train, validation = _one(train, validation, "validation", n_validation, where)
    return train, validation, test


def _one(
    train: Split, own: Split | None, name: str, n: int | None, where: str
) -> tuple[Split, Split]:
    if own is not None:
        if n is not None:
            raise ValueError(
                f"config.data.n_{name} is {n}, but {where} has a {name} split of its own; "
                "set it to None"
            )
        return train, own
    size = len(train.x)
    n = max(1, size // 10) if n is None else n
    if n >= size:
        raise ValueError(
            f"n_{name} = {n} examples cannot be held out of {size} in {where}; "
            f"set config.data.n_{name} to less"
        )
    return hold_out(train, n)
