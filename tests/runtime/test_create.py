"""`create` as a task: a model from nothing, registered, the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from msgspec.structs import replace

from tests.runtime.train.helpers import Bus, error, make_context, make_task, result, spec
from zenos import __version__
from zenos.core import failpoints
from zenos.core.errors import InvalidError, NotFoundError, StorageError, ZenosError
from zenos.core.specs import CreateSpec
from zenos.models.registry import ModelVersion, Registry
from zenos.runtime import architectures, create, worker
from zenos.runtime.context import WorkerContext
from zenos.runtime.create import VOCABULARY_DEFAULT

CLASSES: dict[str, Any] = {
    "llama-nano": transformers.AutoModelForCausalLM,
    "gpt-nano": transformers.AutoModelForCausalLM,
    "bert-nano": transformers.AutoModelForMaskedLM,
    "t5-nano": transformers.AutoModelForSeq2SeqLM,
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1}
WORDS = ["<unk>", "<|stop|>", "<|fill|>", *(f"word{n}" for n in range(37))]


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    failpoints.arm("")


def context(home: Path, work: CreateSpec, task: str = "t1") -> WorkerContext:
    base = make_task(spec(Path("/nowhere")), task=task)
    return make_context(home, replace(base, spec=replace(base.spec, work=work)), Bus())


def created(home: Path, task: str = "t1", **fields: Any) -> tuple[ModelVersion, Path]:
    """The version that a task makes, and its directory."""
    there = context(home, CreateSpec(**{"name": "m", "settings": SMALL, **fields}), task)
    assert create.main(there) == 0
    version = there.registry.resolve(result(there)["model"])
    assert result(there) == {"model": version.ref, "parameters": version.parameters}
    return version, there.registry.path(version)


def with_tokenizer(home: Path, scratch: Path) -> None:
    """Register `words:1`, a model with a tokenizer of 40 words, two of them special."""
    source = scratch / "words"
    source.mkdir()
    model = architectures.build("llama-nano", {"hidden_size": 32}, len(WORDS), 0)
    architectures.save(model, source)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|stop|>", "<|fill|>"])
    tokenizer.save(str(source / "tokenizer.json"))
    names = {"eos_token": "<|stop|>", "pad_token": "<|fill|>"}
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    Registry(home / "models").import_directory(source, "words")


@pytest.mark.parametrize("arch", CLASSES)
def test_a_seed_gives_the_same_files_and_what_is_made_loads(tmp_path: Path, arch: str) -> None:
    first, directory = created(tmp_path, "t1", arch=arch, seed=3)
    again, _ = created(tmp_path, "t2", arch=arch, seed=3)
    other, _ = created(tmp_path, "t3", arch=arch, seed=4)
    assert [v.version for v in (first, again, other)] == [1, 2, 3]
    assert first.files == again.files
    assert first.files["model.safetensors"] != other.files["model.safetensors"]

    theirs = CLASSES[arch].from_pretrained(directory, local_files_only=True)
    ours: Any = architectures.load(directory, torch.float32)
    left, right = theirs.state_dict(), ours.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert theirs.get_input_embeddings().weight.shape == (VOCABULARY_DEFAULT, 32)
    assert first.parameters == sum(p.numel() for p in theirs.parameters())
    assert (first.lineage.task, first.lineage.project) == ("t1", "default")
    assert first.lineage.code_version == __version__


def test_the_tokenizer_comes_along_and_the_config_names_its_tokens(tmp_path: Path) -> None:
    """Llama's usual end is token 2, which here is another word."""
    with_tokenizer(tmp_path, tmp_path)
    source = Registry(tmp_path / "models").resolve("words")
    version, directory = created(tmp_path, arch="llama-nano", tokenizer="words:1")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert version.files[name] == source.files[name]
    model: Any = architectures.load(directory, torch.float32)
    assert model.get_input_embeddings().weight.shape == (40, 32)
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (1, 2)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ids = theirs("word0 word36 <|stop|>")["input_ids"]
    assert ids == [3, 39, 1]
    assert theirs.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"
    assert model(input_ids=torch.tensor([ids])).logits.shape == (1, 3, 40)


@pytest.mark.parametrize("arch", CLASSES)
def test_every_family_takes_a_tokenizer(tmp_path: Path, arch: str) -> None:
    with_tokenizer(tmp_path, tmp_path)
    _, directory = created(tmp_path, arch=arch, tokenizer="words")
    model = CLASSES[arch].from_pretrained(directory, local_files_only=True)
    assert model.config.vocab_size == 40
    assert (model.config.eos_token_id, model.config.pad_token_id) == (1, 2)


def test_settings_go_before_the_tokenizer_s_words(tmp_path: Path) -> None:
    with_tokenizer(tmp_path, tmp_path)
    settings = {**SMALL, "vocab_size": 64, "eos_token_id": 5}
    _, directory = created(tmp_path, arch="llama-nano", tokenizer="words", settings=settings)
    config = architectures.read_config(directory)
    assert (config["vocab_size"], config["eos_token_id"], config["pad_token_id"]) == (64, 5, 2)


def test_a_task_that_is_done_already_makes_no_second_version(tmp_path: Path) -> None:
    """It was killed after it had published, before anybody heard of it."""
    version, _ = created(tmp_path, arch="llama-nano")
    again, _ = created(tmp_path, arch="llama-nano")
    assert again == version
    other, _ = created(tmp_path, "t2", arch="llama-nano")
    assert other.version == 2


@pytest.mark.parametrize(
    ("fields", "kind", "reason"),
    [
        ({"arch": "lama-nano"}, InvalidError, "did you mean 'llama-nano'"),
        ({"settings": {"hiden_size": 8}}, InvalidError, "did you mean 'hidden_size'"),
        (
            {"settings": {"hidden_size": float("nan")}},
            InvalidError,
            "cannot set hidden_size to nan",
        ),
        ({"settings": {"hidden_size": 10**7}}, InvalidError, "this machine has"),
        ({"settings": {"num_attention_heads": 3}}, InvalidError, "multiple"),
        ({"settings": {"vocab_size": 0}}, InvalidError, "cannot use vocab_size 0"),
        ({"settings": {"vocab_size": 1}}, InvalidError, "a whole number from 2"),
        ({"settings": {"vocab_size": -5}}, InvalidError, "cannot use vocab_size -5"),
        ({"settings": {"vocab_size": 10**9}}, InvalidError, "cannot use vocab_size"),
        ({"settings": {"vocab_size": float("nan")}}, InvalidError, "cannot use vocab_size nan"),
        ({"settings": {"vocab_size": 64.0}}, InvalidError, "cannot use vocab_size 64.0"),
        ({"settings": {"vocab_size": "many"}}, InvalidError, "cannot use vocab_size 'many'"),
        ({"settings": {"vocab_size": True}}, InvalidError, "cannot use vocab_size True"),
        ({"settings": {"vocab_size": 39}, "tokenizer": "words"}, InvalidError, "from 40, as its"),
        ({"settings": {"vocab_size": 10**5000}}, InvalidError, "cannot use vocab_size"),
        ({"tokenizer": "word"}, NotFoundError, "did you mean 'words'"),
        ({"tokenizer": "words:7"}, NotFoundError, "the versions are 1"),
        ({"tokenizer": "plain"}, InvalidError, "it has no tokenizer.json"),
        ({"tokenizer": "broken"}, StorageError, "cannot read the tokenizer"),
        ({"tokenizer": "../x"}, InvalidError, "cannot use the model name"),
        ({"name": "../x"}, InvalidError, "cannot use the model name"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_what_cannot_be_created(
    tmp_path: Path, fields: dict[str, Any], kind: type[ZenosError], reason: str
) -> None:
    with_tokenizer(tmp_path, tmp_path)
    registry = Registry(tmp_path / "models")
    plain, _ = created(tmp_path, "t9", arch="llama-nano", name="plain")
    view = registry.path(plain)
    (tmp_path / "tokenizer.json").write_text("{}")
    registry.publish(
        "broken",
        {**{p.name: p for p in view.iterdir()}, "tokenizer.json": tmp_path / "tokenizer.json"},
    )
    before = [version.ref for version in registry.list()]
    with pytest.raises(kind) as raised:
        create.main(context(tmp_path, CreateSpec(**{"name": "m", "arch": "llama-nano", **fields})))
    assert reason in str(raised.value)
    assert str(raised.value).startswith("cannot ")
    assert [version.ref for version in registry.list()] == before


def test_a_failure_is_left_for_the_daemon_and_a_second_try_works(tmp_path: Path) -> None:
    there = context(tmp_path, CreateSpec(name="m", arch="llama-nano", settings=SMALL))
    failpoints.arm("durable.fsync=enospc@3")
    assert worker.run(there, create.main) == 1
    failpoints.arm("")
    assert error(there)["code"] == "storage"
    assert error(there)["message"].startswith("cannot change the registry in ")
    assert error(there)["message"].endswith("No space left on device")
    assert there.registry.list() == []
    assert sorted(path.name for path in there.run_dir.iterdir()) == ["error.json"]
    assert worker.run(there, create.main) == 0
    assert result(there)["model"] == "m:1"


def test_another_kind_of_task_is_refused(tmp_path: Path) -> None:
    there = make_context(tmp_path, make_task(spec(Path("/nowhere"))), Bus())
    with pytest.raises(InvalidError, match="another kind of task"):
        create.main(there)
