"""Where an evaluation's text is, and whether the SAE was trained on it; nothing is read yet."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.mismatch import Mismatch, settle
from saeflow.evaluate.origin import Origin
from saeflow.harvest import builtin
from saeflow.harvest.models import hash_files
from saeflow.harvest.store import Store, open_store, read_attributes
from saeflow.location import Location, locate

_SHOWN = 12
"""Digits of a hash that a message shows."""


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """A text that was found.

    Attributes:
        store: that it is read from; None if it is read from the dataset.
        dataset: name or path; None of a store that names none.
        dataset_sha256: hash of its files, a single one under the name that the SAE knows; None
            if it is not in files here, or not read.
        split, text_field: where in the dataset the text is; None where the dataset has no
            such thing, or is not read.
        part: which documents are used, by the hash of their text.
        trained_on: whether the SAE was trained on them; None if that is not known.
        own: whether it is the SAE's own text, all or part of it trained on.
        own_store: identity of the store that this is the text of, whether or not it is read
            from there; None if it isn't the text of a store.
    """

    own: bool
    store: Store | None = None
    dataset: str | None
    dataset_sha256: str | None = None
    split: str | None = None
    text_field: str | None = None
    part: Literal["train", "heldout"]
    trained_on: bool | None
    own_store: str | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells this text from others: content where there is a hash, else names."""
        if self.own_store is not None:
            return {"store_identity": self.own_store}
        found = {
            "dataset": None if self.dataset is None else dataset_name(self.dataset),
            "dataset_sha256": self.dataset_sha256,
            "split": self.split,
            "text_field": self.text_field,
        }
        return {name: value for name, value in found.items() if value is not None}


def find_text(config: EvaluateConfig, origin: Origin) -> TextSource:
    """The text of an evaluation: `config.dataset`, else the SAE's own.

    The SAE's own is in the store that it was trained on; if that is gone, in the dataset that
    the store was made of.

    Args:
        config: the options.
        origin: where the SAE is from.

    Raises:
        BadInputError: there is none, it is not the one that it should be, or the SAE was
            trained on all of it and that is not allowed.
    """
    if config.dataset is not None:
        return _named(config, config.dataset, origin)
    check_place(config)
    _refuse_unknown_text(config, origin)
    if not config.allow_training_text:
        _refuse_training_text(config, origin)
    place = None if origin.store_path is None else locate(origin.store_path)
    if place is not None and not origin.imported and _is_there(place):
        return _of_store(place, config, origin)
    assert origin.dataset is not None
    return _own(origin.dataset, _sha256(origin.dataset, origin), config, origin)


def check_place(config: EvaluateConfig) -> None:
    """See that a place in a dataset is of a dataset that was named.

    Raises:
        BadInputError: there is `--split` or `--text-field`, and no `--dataset`.
    """
    for flag, value in (("--split", config.split), ("--text-field", config.text_field)):
        if value is not None and config.dataset is None:
            raise BadInputError(f"{flag} {value} is of a dataset: give --dataset, or leave it out")


def dataset_name(dataset: str) -> str:
    """A dataset as provenance names it: the resolved path of files, or a name."""
    path = Path(dataset).expanduser()
    return str(path.resolve()) if path.exists() else dataset


def _holds_out(origin: Origin) -> bool:
    """Whether documents that the SAE never saw can be told by the hash of their text."""
    return bool(origin.held_out) and not origin.imported


def _refuse_unknown_text(config: EvaluateConfig, origin: Origin) -> None:
    if origin.imported:
        raise BadInputError(
            f"SAE {config.sae} was trained on imported activations, whose text is not in the "
            "store: give --dataset"
        )
    if origin.store_path is None and origin.dataset is None:
        raise BadInputError(f"SAE {config.sae} does not say what text it is from: give --dataset")


def _refuse_training_text(config: EvaluateConfig, origin: Origin) -> None:
    """Without a held-out share, or one that can be found again, all of the text was trained on."""
    if _holds_out(origin):
        return
    why = "--held-out 0" if origin.held_out == 0 else "it does not say that any was held out"
    raise BadInputError(
        f"SAE {config.sae} was trained on all of {origin.dataset} ({why}): give another "
        "--dataset, or --allow-training-text to use it all the same"
    )


def _is_there(place: Location) -> bool:
    return place.is_dir() if isinstance(place, Path) else read_attributes(place) is not None


def _of_store(path: Location, config: EvaluateConfig, origin: Origin) -> TextSource:
    store = open_store(path)
    same = store.identity == origin.store_identity
    if not same:
        mismatch = Mismatch(
            "dataset",
            f"store {str(origin.store_identity)[:_SHOWN]}",
            f"store {store.identity[:_SHOWN]} at {store.path}",
            "it is not the one that this SAE was trained on, give --dataset",
        )
        settle(str(config.sae), mismatch, config.allow_mismatch)
    if store.layout.packing is None:
        raise BadInputError(f"store {store.path} holds no text: give --dataset")
    trained_on: bool | None = config.allow_training_text
    if not same and (config.allow_training_text or not _holds_out_no_more(store, origin)):
        trained_on = None
    return TextSource(
        own=True,
        store=store,
        dataset=origin.dataset,
        part="train" if config.allow_training_text else "heldout",
        trained_on=trained_on,
        own_store=store.identity,
    )


def _holds_out_no_more(store: Store, origin: Origin) -> bool:
    """Whether all that another store holds out would have been held out of the SAE's, too."""
    share = store.provenance.get("held_out")
    if share is None or origin.held_out is None or "imported_from" in store.provenance:
        return False
    return bool(share <= origin.held_out)


def _named(config: EvaluateConfig, dataset: str, origin: Origin) -> TextSource:
    """`--dataset`: the SAE's own text, other text of its dataset, or another dataset."""
    sha256 = _sha256(dataset, origin)
    same_name = origin.dataset is not None and dataset_name(dataset) == origin.dataset
    if not same_name and (sha256 is None or sha256 != origin.dataset_sha256):
        place = config.split or "train", config.text_field or "text"
        return _other(dataset, sha256, place, trained_on=_unless_held_out(origin))
    split, field = config.split or origin.split, config.text_field or origin.text_field
    other_split = _has_splits(dataset) and split != origin.split
    other_field = dataset != builtin.NAME and field != origin.text_field
    if not other_split and not other_field:
        if not config.allow_training_text:
            _refuse_training_text(config, origin)
        return _own(dataset, sha256, config, origin)
    never_read = other_split and not other_field and not _changed(sha256, origin)
    trained_on = False if never_read else _unless_held_out(origin)
    return _other(dataset, sha256, (split, field), trained_on=trained_on)


def _own(dataset: str, sha256: str | None, config: EvaluateConfig, origin: Origin) -> TextSource:
    changed, asked = _changed(sha256, origin), config.allow_training_text
    return TextSource(
        own=True,
        dataset=dataset,
        dataset_sha256=sha256,
        split=origin.split if _has_splits(dataset) else None,
        text_field=None if dataset == builtin.NAME else origin.text_field,
        part="train" if asked else "heldout",
        trained_on=None if changed and asked else asked,
        own_store=None if config.dataset is not None or changed else origin.store_identity,
    )


def _other(
    dataset: str, sha256: str | None, place: tuple[str, str], *, trained_on: bool | None
) -> TextSource:
    split, field = place
    return TextSource(
        own=False,
        dataset=dataset,
        dataset_sha256=sha256,
        split=split if _has_splits(dataset) else None,
        text_field=None if dataset == builtin.NAME else field,
        part="heldout",
        trained_on=trained_on,
    )


def _unless_held_out(origin: Origin) -> bool | None:
    """Of other text: what the hash holds out was not seen; without that, nobody knows."""
    return False if _holds_out(origin) else None


def _changed(sha256: str | None, origin: Origin) -> bool:
    """Whether a dataset's files are known to be others than those that the SAE was made from."""
    known = sha256 is not None and origin.dataset_sha256 is not None
    return known and sha256 != origin.dataset_sha256


def _has_splits(dataset: str) -> bool:
    """Only a dataset of the hub, or one that was saved with its splits."""
    path = Path(dataset).expanduser()
    if dataset == builtin.NAME:
        return False
    return (path / "dataset_dict.json").is_file() if path.exists() else True


def _sha256(dataset: str, origin: Origin) -> str | None:
    """As the provenance of the SAE's store has it; None for what is not in files here.

    Names are part of that hash. A single file is taken under the name that the SAE knows, so
    that a renamed copy is the same text.
    """
    path = Path(dataset).expanduser()
    if dataset == builtin.NAME or not path.exists():
        return None
    if not path.is_file():
        return hash_files(p for p in path.rglob("*") if p.is_file())
    return hash_files([path], called=None if origin.dataset is None else Path(origin.dataset).name)
