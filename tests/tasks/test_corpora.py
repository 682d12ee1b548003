import re
import sysconfig
from pathlib import Path

import pytest

from sinkscope.errors import ModelError
from sinkscope.tasks import corpora


def test_code_is_whole_files_that_training_leaves_out():
    root = Path(sysconfig.get_paths()["stdlib"])
    files = corpora.stdlib_files(root)
    train, held_out = corpora.split_files(files, root)
    assert set(train) | set(held_out) == set(files)
    assert not set(train) & set(held_out)
    assert set(corpora.code()) == set(corpora.read_texts(held_out))
    assert not set(corpora.code()) & set(corpora.read_texts(train))


def test_prose_is_docstrings_each_once():
    texts = corpora.prose()
    assert len(texts) == len(set(texts)) > 100
    assert min(map(len, texts)) >= 400
    assert any("Parameters\n----------" in text for text in texts)


def test_prose_of_an_absent_package():
    with pytest.raises(ModelError, match=r"no docstrings under not_there/stats\. Install the package with its source"):
        corpora.prose("not_there")


def test_the_shipped_texts_are_long_enough_to_tell_a_sink_from_even_attention() -> None:
    texts = corpora.texts()
    assert len(texts) == len(corpora.sentences()) == 24
    assert all(len(re.findall(r"\w+|[^\w\s]|\n *", text)) >= 30 for text in texts), "see the quickstart"
    assert all(text == text.strip("\n") and text for text in texts + corpora.sentences() + corpora.snippets())
