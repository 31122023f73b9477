"""Odd documents and odd files: stored exactly, skipped and counted, or refused by their number."""

import json
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from saeflow.errors import BadInputError
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.documents import open_documents
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.models import SourceModel
from saeflow.harvest.plan import Plan, make_plan
from saeflow.harvest.sequences import collect
from saeflow.harvest.store import open_store, read_attributes
from saeflow.harvest.tokens import choose_packing, tokenize

STORED = {
    "one letter": "a",
    "NUL": "a\0b",
    "only NUL": "\0",
    "other control characters": "a\x01\x07\x1b[31mb\x7f",
    "spaces around": "  the tensor  ",
    "right-to-left marks": "a\u200f\u202e\u2067dcba\u2069",
    "a byte order mark inside": "a\ufeffb",
    "500 combining marks": "e" + "\u0301" * 500,
    "not normalised": "A\u030a \u00c5 \u212b",
    "emoji joined to one": "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "emoji with a skin colour": "\U0001f44b\U0001f3fd",
    "beyond the basic plane": "\U00020000\U0001d4d0\U0010ffff",
    "no character": "\uffff\ufffe",
    "the replacement character": "\ufffd",
    "only zero-width spaces": "\u200b\u200b",
    "zero-width joiners": "a\u200cb\u200dc\u2060d",
    "a soft hyphen": "ten\u00adsor",
    "unusual spaces inside": "a\u00a0b\u2003c\u3000d\u1680e",
    "form feeds": "a\fb\vc",
    "carriage returns": "a\r\nb\rc\r\n",
    "line separators": "a\u2028b\u2029c\x85d",
    "blank lines": "a\n\n\n\nb\n",
    "an end-of-text token as text": "a <|endoftext|> b",
    "the tokenizer's own tokens as text": "<|bos|>the<|eos|><|pad|>",
    "half a special token": "<|bos",
    "an unknown token as text": "<unk> [UNK] </s> <s>",
    "NA": "NA",
    "null": "null",
    "a number": "42",
    "a date": "2020-01-01",
    "a truth": "true",
    "markup": "[bold]a[/bold] <b>&amp;</b> ${HOME} %s {0}",
    "JSON": '{"text": "a"}',
    "commas and quotes": 'a,"b",\'c\'\n"',
    "backslashes": "\\u0041 \\n C:\\temp",
    "a path": "../../etc/passwd",
    "a word of 200,000 letters": "w" * 200_000,
    "200,000 spaces and a letter": " " * 200_000 + "a",
    "Chinese": "\u7a00\u758f\u81ea\u7f16\u7801\u5668",
    "Arabic": "\u0627\u0644\u0633\u0644\u0627\u0645",
    "Devanagari": "\u0928\u092e\u0938\u094d\u0924\u0947",
}
"""Texts that come back from the stored tokens as they were."""

SKIPPED: dict[str, str | list[int] | None] = {
    "nothing": "",
    "null": None,
    "a space": " ",
    "tabs and line ends": "\t\r\n\f\v",
    "no-break and other spaces": "\u00a0\u2003\u3000\u2028",
    "information separators": "\x1c\x1d\x1e\x1f",
    "no token ids": [],
}
"""Documents that have no tokens."""

REFUSED = {
    "a whole number": (7, "int 7"),
    "a fraction": (0.5, "float 0.5"),
    "not a number": (float("nan"), "float nan"),
    "a truth value": (True, "bool True"),
    "an object": ({"a": 1}, "dict {'a': 1}"),
    "a list of texts": (["a", "b"], "str 'a' at place 0 of a list"),
    "a list of lists": ([[1, 2]], "list [1, 2] at place 0 of a list"),
    "a negative token": ([3, -1], "int -1 at place 1 of a list"),
    "a fraction for a token": ([3, 4, 5.0], "float 5.0 at place 2 of a list"),
    "a truth value for a token": ([True], "bool True at place 0 of a list"),
    "nothing for a token": ([1, None], "NoneType None at place 1 of a list"),
    "half a surrogate pair": ("ab\ud800c", r"half a surrogate pair, '\ud800' at character 2"),
    "the other half": ("\udc00", r"half a surrogate pair, '\udc00' at character 0"),
    "a very long object": ({"k": "v" * 10**6}, "dict {'k': 'vvvvvvvvvv"),
}
"""Contents of a document that are no text and no token ids, and what is said of them."""

FILES: dict[str, tuple[bytes, list[Any]]] = {
    "crlf.txt": (b"a\r\nb\r\n\r\nc\r\n", ["a\r\nb", "c"]),
    "mark.txt": (b"\xef\xbb\xbfa\n\nb", ["a", "b"]),
    "spaces-between.txt": (b"a\n \t\nb", ["a", "b"]),
    "many-blank-lines.txt": (b"\n\n\na\n\n\n\n\nb\n\n\n", ["a", "b"]),
    "no-end.txt": (b"a", ["a"]),
    "feed.txt": (b"a\n\n\f\n\nb", ["a", "", "b"]),
    "UPPER.TXT": (b"a", ["a"]),
    "empty.txt": (b"", []),
    "blank.txt": (b"\n\n\r\n", []),
    "long.txt": (b"x" * (11 << 20) + b"\n\ny", ["x" * (11 << 20), "y"]),
    "crlf.jsonl": (b'{"text": "a"}\r\n{"text": "b"}\r\n', ["a", "b"]),
    "mark.jsonl": (b'\xef\xbb\xbf{"text": "a"}', ["a"]),
    "blank-lines.jsonl": (b'{"text": "a"}\n\n  \n{"text": "b"}', ["a", "b"]),
    "pair.jsonl": (rb'{"text": "\ud83d\ude00"}', ["\U0001f600"]),
    "dates.jsonl": (b'{"text": "2020-01-01"}', ["2020-01-01"]),
    "other-fields.jsonl": (
        b'{"text": "a", "meta": 1}\n{"meta": {"x": []}, "text": "b"}\n{"text": "c", "meta": "y"}',
        ["a", "b", "c"],
    ),
    "null-first.jsonl": (b'{"text": null}\n{"text": "a"}', ["", "a"]),
    "strings.jsonl": (b'"a"\n"b"', ["a", "b"]),
    "list.json": (b'[{"text": "a"},\n {"text": "b"}]', ["a", "b"]),
    "object.json": (b'{\n  "text": "a"\n}\n', ["a"]),
    "lines.json": (b'{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
    "missing-values.csv": (b'text\nNA\nnull\nNone\nnan\n""\n', ["NA", "null", "None", "nan", ""]),
    "numbers.csv": (b"text\n1\n007\n1.50\nTrue\n", ["1", "007", "1.50", "True"]),
    "quotes.csv": (b'n,text\r\n1,"a ""b"", c\r\nd"\r\n2,e\r\n', ['a "b", c\r\nd', "e"]),
    "mark.csv": (b"\xef\xbb\xbftext\na\n", ["a"]),
    "long-field.csv": (b"text\n" + b"w" * 300_000 + b"\n", ["w" * 300_000]),
    "header-only.csv": (b"text,n\n", []),
}
"""Files, and the documents in them."""

BROKEN: dict[str, tuple[bytes, int, str]] = {
    "latin-1.txt": (b"a\n\nZ\xfcrich\n", 1, "line 3 of latin-1.txt is not UTF-8 at its byte 2"),
    "utf-16.txt": ("a".encode("utf-16"), 0, "line 1 of utf-16.txt is not UTF-8 at its byte 1"),
    "cut-character.txt": (b"a\n\n\xe2\x82", 1, "line 3 of cut-character.txt is not UTF-8"),
    "surrogate.txt": (b"\xed\xa0\x80", 0, "line 1 of surrogate.txt is not UTF-8"),
    "broken.jsonl": (
        b'{"text": "a"}\n\n{"text": }\n{"text": "c"}',
        1,
        "line 3 of broken.jsonl is not JSON (Expecting value, column 10): mend it, or take it out",
    ),
    "cut.jsonl": (b'{"text": "a"}\n{"text": "b', 1, "line 2 of cut.jsonl is not JSON"),
    "two-a-line.jsonl": (b'{"text": "a"} {"text": "b"}', 0, "is not JSON (Extra data, column 15)"),
    "bytes.jsonl": (b'{"text": "a\xff"}', 0, "line 1 of bytes.jsonl is not UTF-8 at its byte 12"),
    "deep.jsonl": (b"[" * 200_000, 0, "line 1 of deep.jsonl is not JSON"),
    "cut.json": (b'[{"text": "a"},\n{"text": ', 0, "line 2 of cut.json is not JSON"),
    "open-quote.csv": (b'text\na\n"b\nc\n', 1, "of open-quote.csv is not CSV"),
    "too-many.csv": (
        b"text,n\na,1\nb, c,2\n",
        1,
        "the number of fields on line 3 of too-many.csv is 3, and of its header 2",
    ),
    "too-few.csv": (b"n,text\n1\n", 0, "the number of fields on line 2 of too-few.csv is 1"),
    "no-field.jsonl": (b'{"text": "a"}\n{"body": "b"}', 1, "has no field 'text'"),
    "a-list.jsonl": (b'["a", "b"]', 0, "str 'a' at place 0 of a list"),
}
"""Files that can't be read, at which document, and what is said of it."""

UNOPENED: dict[str, tuple[bytes, str]] = {
    "cut.parquet": (b"PAR1\x00\x00", "can't be opened: "),
    "empty.parquet": (b"", "can't be opened: "),
    "text.parquet": (b"just text, and enough of it to be read", "can't be opened: "),
    "a.jsonl.gz": (b"\x1f\x8b", "holds no files to read: give one of .txt, .jsonl"),
    "nameless": (b"a", "holds no files to read"),
    "photo.png": (b"\x89PNG", "holds no files to read"),
}


def test_there_are_sixty_of_them() -> None:
    kinds: tuple[Sized, ...] = (STORED, SKIPPED, REFUSED, FILES, BROKEN, UNOPENED)
    print(f"{sum(map(len, kinds))} odd documents and files")
    assert sum(map(len, kinds)) >= 60


def jsonl(file: Path, contents: Sequence[object]) -> Path:
    """One document a line, lone surrogates as the escapes that they are in JSON."""
    file.write_text("".join(json.dumps({"text": content}) + "\n" for content in contents))
    return file


@pytest.fixture
def tokenising_pass(source_model: SourceModel, tmp_path: Path) -> Callable[..., Plan]:
    """The tokenising pass over a dataset, with the packing of a harvest; nothing is held out."""

    def run(dataset: Path, **options: Any) -> Plan:
        config = HarvestConfig(
            model="tiny",
            dataset=str(dataset),
            hook=("hook_embed",),
            out=tmp_path / "store",
            **{"held_out": 0.0, "context_size": 17, **options},
        )
        return make_plan(config, source_model, (HookPoint("hook_embed", (32,)),), tmp_path)

    return run


def texts_in(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The documents of the training split by their number, from their tokens."""
    stream, packing = plan.streams["train"], plan.layout.packing
    assert packing is not None
    parts = np.split(np.asarray(stream.tokens), stream.starts[1:].astype(np.int64))
    if packing.packed:
        assert all(part[-1] == packing.separator for part in parts)
        parts = [part[:-1] for part in parts]
    texts = [tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in parts]
    return dict(zip(stream.documents.tolist(), texts, strict=True))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "not packed"])
@pytest.mark.parametrize("name", STORED)
def test_an_odd_text_is_stored_exactly(
    tokenising_pass: Callable[..., Plan],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    name: str,
    packed: bool,
) -> None:
    """Of sequences of two tokens every one is whole, so no token is left over."""
    texts = ["before", STORED[name], "after"]
    dataset = jsonl(tmp_path / "a.jsonl", texts)
    plan = tokenising_pass(dataset, pack=packed, **({"context_size": 2} if packed else {}))
    assert texts_in(plan, tokenizer) == dict(enumerate(texts))
    assert (plan.counts.documents_read, plan.counts.documents_empty) == (3, 0)
    assert plan.counts.tokens_unused == 0
    assert plan.layout.splits["train"].n_rows == plan.counts.tokens_read
    tokens = np.asarray(plan.streams["train"].tokens)
    assert not {0, 2} & set(tokens.tolist())  # BOS and pad: text that looks like them is text
    assert (tokens == 1).sum() == (3 if packed else 0)


@pytest.mark.parametrize("name", SKIPPED)
def test_an_empty_document_is_skipped_and_counted(
    tokenising_pass: Callable[..., Plan],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    name: str,
) -> None:
    dataset = jsonl(tmp_path / "a.jsonl", ["before", SKIPPED[name], "after"])
    plan = tokenising_pass(dataset, pack=False)
    assert texts_in(plan, tokenizer) == {0: "before", 2: "after"}
    assert (plan.counts.documents_read, plan.counts.documents_empty) == (3, 1)
    assert plan.layout.splits["train"].n_documents == 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_document_is_refused_by_its_number(
    tokenising_pass: Callable[..., Plan], tmp_path: Path, name: str
) -> None:
    content, told = REFUSED[name]
    dataset = jsonl(tmp_path / "a.jsonl", ["before", content, "after"])
    with pytest.raises(BadInputError) as refusal:
        tokenising_pass(dataset)
    line = str(refusal.value)
    assert line.startswith(f"document 1 of dataset {dataset}: field 'text' holds {told}")
    assert line.endswith(": give text, or token ids from 0")
    assert len(line) < 300 + len(str(dataset))


@pytest.mark.parametrize("name", FILES)
def test_an_odd_file_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    content, texts = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert [d.text for d in open_documents(str(tmp_path / name))] == texts


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_document_and_line(
    tokenising_pass: Callable[..., Plan], tmp_path: Path, name: str
) -> None:
    content, index, told = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError) as refusal:
        tokenising_pass(tmp_path / name)
    line = str(refusal.value)
    assert line.startswith(f"document {index} of dataset {tmp_path / name}")
    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize("name", UNOPENED)
def test_a_file_of_no_kind_that_is_read(tmp_path: Path, name: str) -> None:
    content, told = UNOPENED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError) as refusal:
        list(open_documents(str(tmp_path / name)))
    assert str(refusal.value).startswith(f"dataset {tmp_path / name} ")
    assert told in str(refusal.value)


def test_a_broken_line_late_in_a_large_file_is_still_named(tmp_path: Path) -> None:
    good = json.dumps({"text": "the tensor " * 600}) + "\n"
    (tmp_path / "a.jsonl").write_text(good * 2000 + '{"text": \n' + good)
    told = r"document 2000 of dataset .*: line 2001 of a\.jsonl is not JSON"
    with pytest.raises(BadInputError, match=told):
        sum(1 for _ in open_documents(str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(
    ("packed", "megabytes"), [(True, 5), (False, 1)], ids=["packed", "not packed"]
)
def test_a_document_of_megabytes_is_split_and_never_cut_off(
    tokenising_pass: Callable[..., Plan],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    packed: bool,
    megabytes: int,
) -> None:
    line = "the sparse latent of a dense model, in row 42 of Z\u00fcrich's shard\n"
    text = line * (megabytes * 1_000_000 // len(line) + 1)
    plan = tokenising_pass(jsonl(tmp_path / "a.jsonl", [text, "after " * 20]), pack=packed)
    stream = plan.streams["train"]
    assert plan.counts.tokens_read == stream.n_rows + plan.counts.tokens_unused
    assert plan.counts.tokens_unused < (16 if packed else 1)
    end = int(stream.starts[1]) - packed
    assert tokenizer.decode(stream.tokens[:end], clean_up_tokenization_spaces=False) == text
    if packed:
        assert stream.n_rows == stream.n_sequences * 16
    else:
        assert stream.row_starts is not None
        lengths = np.diff(stream.row_starts)
        of_the_first = np.searchsorted(stream.row_starts, end)
        assert lengths[: of_the_first - 1].tolist() == [16] * (of_the_first - 1)


def test_documents_of_token_ids(tokenising_pass: Callable[..., Plan], tmp_path: Path) -> None:
    """One token, BOS alone, an end-of-text token inside: taken as they are."""
    contents = [[5], [0], [1, 1], [299], [7, 0, 8]]
    plan = tokenising_pass(jsonl(tmp_path / "a.jsonl", contents), pack=False)
    assert plan.streams["train"].tokens.tolist() == [5, 0, 1, 1, 299, 7, 0, 8]
    assert plan.streams["train"].documents.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("token", [300, 2**32 + 5, 10**30])
def test_a_token_that_the_model_does_not_have(
    tokenising_pass: Callable[..., Plan], tmp_path: Path, token: int
) -> None:
    dataset = jsonl(tmp_path / "a.jsonl", [[5], [6, token]])
    told = f"document 1 of dataset {dataset} holds token {token} and model .* has 300"
    with pytest.raises(BadInputError, match=told):
        tokenising_pass(dataset)


def test_a_parquet_file_of_odd_texts(tmp_path: Path) -> None:
    from datasets import Dataset

    texts = list(STORED.values())
    Dataset.from_dict({"text": [*texts, None, " "]}).to_parquet(tmp_path / "a.parquet")
    assert [d.text for d in open_documents(str(tmp_path / "a.parquet"))] == [*texts, "", ""]


def test_a_parquet_file_of_bytes_is_refused(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": [b"a\xff"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadInputError, match=r"document 0 .* field 'text' holds bytes b'a\\xff'"):
        list(open_documents(str(tmp_path / "a.parquet")))


def test_a_parquet_file_that_is_damaged_inside(tmp_path: Path) -> None:
    from datasets import Dataset

    file = tmp_path / "a.parquet"
    Dataset.from_dict({"text": ["the tensor " * 100] * 100}).to_parquet(file)
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    told = r"a\.parquet can't be (opened|read from document 0 on): "
    with pytest.raises(BadInputError, match=told):
        list(open_documents(str(file)))


@pytest.mark.parametrize("pack", ["--pack", "--no-pack"])
def test_a_harvest_of_odd_documents(
    run_cli: Callable[..., Any],
    tokenizer: PreTrainedTokenizerBase,
    tiny_model: Path,
    tmp_path: Path,
    pack: str,
) -> None:
    """All but the longest, through the whole command: every token has its row."""
    some = [*STORED.values(), *SKIPPED.values()]
    contents = [c or "" for c in some if not isinstance(c, list) and len(c or "") < 2000]
    out, text = tmp_path / "store", jsonl(tmp_path / "a.jsonl", contents)
    flags = {"hook": "blocks.0.hook_resid_post", "context_size": 17, "held_out": 0.3}
    outcome = run_cli(
        "harvest", pack, "--json", model=tiny_model, dataset=text, out=out, device="cpu", **flags
    )
    assert outcome.code == 0, outcome.err
    found, store = json.loads(outcome.out), open_store(out)
    separator = 1 if pack == "--pack" else None
    texts = [text for text in contents if text.strip()]
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    expected = sum(len(ids) + (separator is not None) for ids in encoded)
    attributes = read_attributes(out)
    assert attributes is not None
    counts = attributes["text"]
    assert counts["documents_read"] == len(contents)
    assert counts["documents_empty"] == len(contents) - len(texts)
    assert counts["tokens_read"] == expected
    assert counts["tokens_unused"] <= (30 if separator else 0)
    assert found["rows"] + found["held_out_rows"] == expected - counts["tokens_unused"]
    back = {}
    for split in store.layout.splits.values():
        names = [f"{split.folder}{name}" for name in ("token", "doc", "seq", "pos")]
        token, doc, seq, pos = (np.asarray(store.array(name)[:]) for name in names)
        order = np.lexsort([pos, seq])
        for number in np.unique(doc):
            ids = [t for t in token[order][doc[order] == number].tolist() if t != separator]
            back[int(number)] = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    cut = [number for number, text in back.items() if text != contents[number]]
    assert len(cut) <= (2 if separator else 0)  # of each split the last one
    assert all(contents[number].startswith(back[number].rstrip("\ufffd")) for number in cut)
    assert len(back) >= len(texts) - (2 if separator else 0)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("a.txt", "deep/er/b.txt", ".hidden.txt", ".git/c.txt", "deep/.cache/x/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [d.text for d in open_documents(str(tmp_path))] == ["a.txt", "deep/er/b.txt"]


def test_a_folder_of_oddly_named_files(tmp_path: Path) -> None:
    names = ["*.txt", "[a-z].txt", "a b.txt", "new\nline.txt", "z\u00fc\u200b.txt"]
    for name in names:
        (tmp_path / name).write_text(name.replace("\n", ""))
    texts = [d.text for d in open_documents(str(tmp_path))]
    assert texts == [name.replace("\n", "") for name in sorted(names)]


@given(
    texts=st.lists(st.one_of(st.none(), st.text()), max_size=8),
    context=st.integers(2, 9),
    packed=st.booleans(),
    held_out=st.sampled_from([0.0, 0.5]),
    limit=st.one_of(st.none(), st.integers(1, 60)),
)
@settings(max_examples=1000)
def test_every_token_of_any_texts_is_a_row_or_counted(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    context: int,
    packed: bool,
    held_out: float,
    limit: int | None,
) -> None:
    """Rows are the documents' tokens, in their order; what isn't a row is counted as unused."""
    folder = tmp_path_factory.getbasetemp()
    dataset = jsonl(folder / "any.jsonl", texts)
    packing = choose_packing(tokenizer, context, packed=packed)
    tokenized = list(tokenize(open_documents(str(dataset)), tokenizer, packing, held_out=held_out))
    assert [t.index for t in tokenized] == list(range(len(texts)))
    assert [len(t.tokens) == 0 for t in tokenized] == [not (text or "").strip() for text in texts]
    if not any(len(t.tokens) for t in tokenized):
        with pytest.raises(BadInputError, match=r"no documents|all of them empty"):
            collect(tokenized, packing, limit, folder, train_needed=False)
        return
    streams, counts = collect(tokenized, packing, limit, folder, train_needed=False)
    read = tokenized[: counts.documents_read]
    assert counts.documents_empty == sum(len(t.tokens) == 0 for t in read)
    assert counts.tokens_read == sum(len(t.tokens) for t in read)
    rows = sum(stream.n_rows for stream in streams.values())
    assert rows == counts.tokens_read - counts.tokens_unused
    for name, stream in streams.items():
        mine = [t for t in read if len(t.tokens) and t.held_out == (name == "heldout")]
        whole = np.concatenate([np.zeros(0, np.uint32), *(t.tokens for t in mine)])
        assert np.array_equal(stream.tokens, whole[: stream.n_rows])
        starts = np.cumsum([0, *(len(t.tokens) for t in mine)])[:-1]
        begun = [t.index for t, at in zip(mine, starts, strict=True) if at < stream.n_rows]
        assert stream.documents.tolist() == begun
        cut = stream.sequences(packing, 0, stream.n_sequences)
        assert (cut[:, 0] == packing.bos).all()
        if packed:
            assert np.array_equal(cut[:, 1:].ravel(), stream.tokens)
    if limit is None and not packed:
        assert counts.tokens_unused == 0
    if limit is not None and counts.documents_read < len(texts):
        assert rows >= limit
