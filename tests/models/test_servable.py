"""What can never answer is refused before anything is started for it."""

from __future__ import annotations

import msgspec
import pytest

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.models.records import FileInfo, ModelVersion, context_length

FILES = {name: FileInfo(digest="0", size=1) for name in ("config.json", "tokenizer.json")}


def version(family: str = "decoder", *, tokenizer: bool = True) -> ModelVersion:
    return ModelVersion(
        name="m",
        version=3,
        created=0,
        family=family,
        arch="llama" if family == "decoder" else "bert",
        parameters=10**7,
        bytes=4 * 10**7,
        files=FILES if tokenizer else {"config.json": FILES["config.json"]},
        config={"model_type": "llama", "max_position_embeddings": 2048},
    )


def test_a_decoder_with_a_tokenizer_can_be_asked() -> None:
    assert version().can_be_asked
    version().check_servable()
    version().check_servable(context=2048, memory=limits.GIB)


def test_what_cannot_be_asked_is_refused_with_the_reason() -> None:
    for bad, says in (
        (version("encoder"), "cannot serve m:3: a bert model doesn't generate text"),
        (version("encoder-decoder"), "doesn't generate text"),
        (version(tokenizer=False), "cannot serve m:3: it has no tokenizer"),
    ):
        assert not bad.can_be_asked
        with pytest.raises(InvalidError, match=says):
            bad.check_servable()
    unsaid = msgspec.structs.replace(version("unknown"), arch="")
    with pytest.raises(InvalidError, match=r"cannot serve m:3: its config\.json has no model_type"):
        unsaid.check_servable()
    with pytest.raises(InvalidError, match="a context of 2049 tokens: it has 2048"):
        version().check_servable(context=2049)
    with pytest.raises(InvalidError, match=r"in 1 MiB: its weights alone are 38.1 MiB"):
        version().check_servable(memory=limits.MIB)


def test_positions_that_are_counted_after_the_padding_are_left_out() -> None:
    config = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert context_length(config) == 512
    assert context_length({**config, "model_type": "bert"}) == 514
    assert context_length({"n_positions": 1024}) == 1024
    assert context_length({}) is None
