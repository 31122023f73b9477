"""The process that forks a `saeflow harvest` for each request. Run as a script."""

import functools

import forked


def prepare() -> None:
    """Import and load once what all the forks need."""
    import datasets  # noqa: F401  # imported once for all the forks

    from saeflow.harvest import models, run

    # Half of a small harvest's time, and no file of the store is touched: so once for all.
    load_model = functools.cache(models.load_model)
    load_model(models.ModelSpec(name="builtin"))
    vars(run)["load_model"] = load_model


if __name__ == "__main__":
    prepare()
    forked.serve()
