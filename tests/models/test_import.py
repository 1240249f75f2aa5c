"""Models that come from elsewhere and go elsewhere: Hugging Face directories in and out."""

from __future__ import annotations

import json
import math
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from zenos.core import limits
from zenos.core.errors import ConflictError, InvalidError, NotFoundError, StorageError
from zenos.models import copying, intake
from zenos.models.registry import Registry
from zenos.runtime import architectures

from .files import litter, pack, tensor, weights, write_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny() -> Any:
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return architectures.build("llama-nano", settings, 64, 7)


def equal(one: Any, other: Any) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def opened(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)


# -- whole models, with transformers


@pytest.mark.parametrize("shard_size", ["1GB", "10KB"])
def test_a_hugging_face_directory_comes_in_and_goes_out_the_same(
    registry: Registry, tmp_path: Path, shard_size: str
) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    # What such directories hold besides, and what a model doesn't need.
    (tmp_path / "theirs/pytorch_model.bin").write_bytes(pickle.dumps({"w": 1}))
    (tmp_path / "theirs/modeling_own.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "theirs/.gitattributes").write_text("*.bin filter=lfs")
    (tmp_path / "theirs/onnx").mkdir()
    version = registry.import_directory(tmp_path / "theirs", "mine")
    shards = [name for name in version.files if name.endswith(".safetensors")]
    assert (len(shards) > 1) == (shard_size == "10KB")
    assert "model.safetensors.index.json" in version.files or len(shards) == 1
    assert not version.files.keys() & {"pytorch_model.bin", "modeling_own.py", ".gitattributes"}
    assert version.parameters == sum(p.numel() for p in model.parameters())
    assert (version.family, version.arch) == ("decoder", "llama")
    assert version.lineage.parent == "import:theirs"
    # What is not taken is written down, with the reason; hidden files are a repository's own.
    assert version.lineage.left_out == {
        "pytorch_model.bin": intake.PICKLE,
        "modeling_own.py": intake.CODE,
        "onnx/": intake.INSIDE,
    }

    assert equal(opened(registry.path(version)), model)
    assert equal(architectures.load(registry.path(version), torch.float32), model)

    registry.export("mine", tmp_path / "out")
    assert equal(opened(tmp_path / "out"), model)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    again = registry.import_directory(tmp_path / "out", "again")
    assert again.files == version.files  # byte for byte, and stored once
    assert again.lineage.left_out == {}
    registry.remove("mine")
    assert equal(opened(registry.path(again)), model)


def test_why_something_is_left_out(registry: Registry, tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    files = write_model(directory)
    config = {**json.loads(files["config.json"].read_bytes()), "auto_map": {"AutoModel": "a.B"}}
    files["config.json"].write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["a", null]}}')
    (directory / "model.gguf").write_bytes(b"GGUF")
    (directory / "weights").write_bytes(b"PK\x03\x04")
    os.mkfifo(directory / "pipe")
    odd = os.fsdecode(b"caf\xe9.py")
    (directory / odd).touch()
    assert registry.import_directory(directory, "m").lineage.left_out == {
        "auto_map of config.json": intake.AUTO_MAP,
        "auto_map of tokenizer_config.json": intake.AUTO_MAP,
        "caf?.py": intake.CODE,
        "model.gguf": intake.NO_PART,
        "pipe": intake.NO_PART,
        "weights": intake.PICKLE,
    }
    for number in range(200):
        (directory / f"step-{number:03}.pt").touch()
    left = registry.import_directory(directory, "m").lineage.left_out
    assert left["…"] == "104 more"
    assert registry.copy("m:1", "other").lineage.left_out["weights"] == intake.PICKLE


def test_what_is_left_out_of_a_config_is_in_no_export(registry: Registry, tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    files = write_model(directory)
    plain = json.loads(files["config.json"].read_bytes())
    files["config.json"].write_text(json.dumps({**plain, "auto_map": {"AutoModel": "a.B"}}))
    names = directory / "tokenizer_config.json"
    names.write_text('{"name": "grün", "auto_map": {"AutoTokenizer": ["a", null]}}')
    version = registry.import_directory(directory, "m")
    assert version.config == plain
    registry.verify(version)
    registry.export("m", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_bytes()) == plain
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_bytes()) == {"name": "grün"}
    assert "auto_map" in files["config.json"].read_text()  # theirs stays as it is


def test_an_import_without_a_place_for_temporary_files_is_told_so(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_model(tmp_path / "theirs")
    config = json.loads(files["config.json"].read_bytes())
    files["config.json"].write_text(json.dumps({**config, "auto_map": {"AutoModel": "a.B"}}))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match=r"cannot make a directory for temporary files.*TMPDIR"):
        registry.import_directory(tmp_path / "theirs", "m")


def test_the_hub_s_cache_is_a_hugging_face_directory(registry: Registry, tmp_path: Path) -> None:
    """There the files are links into `blobs` beside the snapshots, named by their hashes."""
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots/abc123"
    files = write_model(repository / "plain")
    (repository / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for number, (name, path) in enumerate(files.items()):
        path.rename(repository / f"blobs/{number}")
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    version = registry.import_directory(snapshot, "hub")
    assert sorted(version.files) == sorted(files)
    # What is wrong with one is said by its own name.
    (repository / "blobs/1").write_bytes(b"short")
    with pytest.raises(InvalidError, match=r"model\.safetensors: it is truncated"):
        registry.import_directory(snapshot, "hub")


@pytest.mark.parametrize("preset", ["llama-nano", "gpt-nano", "bert-nano", "t5-nano"])
def test_each_kind_of_model_fits_its_own_config(
    registry: Registry, tmp_path: Path, preset: str
) -> None:
    architectures.build(preset, {}, 64, 7).save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    assert registry.import_directory(tmp_path / "theirs", "mine").version == 1


def test_what_the_config_does_not_say_is_not_asked_for(registry: Registry, tmp_path: Path) -> None:
    unsaid: list[dict[str, Any]] = [
        {},
        {"vocab_size": None},
        {"head_dim": None, "num_key_value_heads": None, "hidden_act": None},  # the usual ones
        {"num_attention_heads": 3, "head_dim": 4},  # which need not be a part of the whole
        {"model_type": "albert", "hidden_size": 8},  # whose embedding is narrower
        {"pad_token_id": -1, "eos_token_id": [1, 2], "bos_token_id": None},
        {"bos_token_id": 50256, "eos_token_id": 50256},  # gpt2's, which never come in a small one
        {"model_type": "gpt2", "pad_token_id": 50256},
        {"hidden_size": 8, "quantization_config": {"bits": 4}},  # whose shapes are its own
    ]
    changed = [*(says(**changes) for changes in unsaid), layers(), layers(head_dim=None)]
    # What transformers knows beside jinja2's own; and one that is looked at when it is used.
    changed.append(file("chat_template.jinja", "{% generation %}{% break %}{% endgeneration %}"))
    changed.append(file("chat_template.jinja", "{% if" + " " * 100_000))
    for number, change in enumerate(changed):
        directory = tmp_path / str(number)
        write_model(directory)
        change(directory)
        registry.import_directory(directory, "m")


def test_integers_are_taken_where_they_are_no_weights_or_quantized_ones(
    registry: Registry, tmp_path: Path
) -> None:
    def taken(name: str, **config: Any) -> None:
        write_model(tmp_path / name, config={"model_type": "gpt2", **config})
        (tmp_path / name / "model.safetensors").write_bytes(pack({name: tensor(0, 1)}, b"x"))
        registry.import_directory(tmp_path / name, "m")

    taken("h.0.attn.bias")  # gpt2's mask
    taken("position_ids")
    taken("h.0.mlp.weight", quantization_config={"bits": 4})
    taken("h.1.mlp.weight", text_config={"quantization_config": {"bits": 4}})
    with pytest.raises(InvalidError, match="has the dtype U8"):
        taken("h.0.mlp.bias")


def test_what_is_written_down_is_of_the_copies_and_not_of_what_is_there_now(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "theirs")
    template = tmp_path / "theirs/tokenizer_config.json"
    template.write_text("{}")
    copy = copying.copy

    def and_change(source: Any, target: Any, *, beside: bool) -> tuple[str, int]:
        copied = copy(source, target, beside=beside)
        if Path(source.name) == template:
            template.write_text('{"chat_template": "x"}')
        return copied

    monkeypatch.setattr(copying, "copy", and_change)
    version = registry.import_directory(tmp_path / "theirs", "m")
    assert (registry.path(version) / template.name).read_text() == "{}"
    assert not version.has_chat_template


def changing(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Let the owner of the files change them once they were looked at, before they are copied."""
    copy, changed = copying.copy, threading.Event()

    def slow(*args: Any, **options: Any) -> tuple[str, int]:
        if not changed.is_set():
            changed.set()
            change()
        return copy(*args, **options)

    monkeypatch.setattr(copying, "copy", slow)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", "{}", r"its tokenizer\.json is none"),
        ("config.json", '{"model_type": "evil"}', "of the type 'evil'"),
        ("model.safetensors", "", "it is truncated"),
    ],
)
def test_what_was_changed_after_the_first_look_does_not_come_in(
    registry: Registry,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
    says: str,
) -> None:
    write_model(tmp_path / "theirs")
    changing(monkeypatch, lambda: (tmp_path / "theirs" / name).write_text(content))
    with pytest.raises(InvalidError, match=says):
        registry.import_directory(tmp_path / "theirs", "m")
    assert registry.list() == []
    assert litter(root) == []


# -- what may not come in


def truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lying(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(pack({"w": tensor(0, 2**40)}, b"x"))


def only_pickle(name: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / name).write_bytes(pickle.dumps({"w": 1}))

    return apply


def renamed_pickle(directory: Path) -> None:
    torch.save({"w": torch.zeros(3)}, directory / "model.safetensors")


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def link(name: str, target: str) -> Callable[[Path], None]:
    """One file a link; `outside` lies beside the directory."""

    def apply(directory: Path) -> None:
        path = directory / name
        outside = directory.parent / "outside"
        if path.exists():
            path.rename(outside)
        else:
            outside.write_bytes(b"{}")
        path.symlink_to(target.format(outside=outside))

    return apply


def link_to_link(directory: Path) -> None:
    link("model.safetensors", "{outside}")(directory)
    (directory / "inner").symlink_to(directory / "model.safetensors")
    (directory / "second.safetensors").symlink_to("inner")
    (directory / "model.safetensors").rename(directory / "model")


def index(weight_map: Any) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return apply


def deep_config(directory: Path) -> None:
    (directory / "config.json").write_bytes(b'{"a":' * 100_000)


def raw_index(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_bytes(b"{" * 100_000)


def odd_name(directory: Path) -> None:
    (directory / "my notes 😀.txt").write_text("x")


def long_name(directory: Path) -> None:
    (directory / ("x" * 200 + ".txt")).write_text("x")


def control_name(directory: Path) -> None:
    (directory / "a\n\x1b[2J.json").write_text("{}")


def many_files(directory: Path) -> None:
    for number in range(1001):
        (directory / f"{number}.txt").touch()


def says(**changes: Any) -> Callable[[Path], None]:
    """A config of its own, with tensors called as a llama's are: an embedding and one layer."""

    def apply(directory: Path) -> None:
        usual = {"model_type": "llama", "vocab_size": 3, "hidden_size": 2, "num_hidden_layers": 1}
        (directory / "config.json").write_text(json.dumps({**usual, **changes}))
        tensors = {
            "model.embed_tokens.weight": tensor(0, 6, [3, 2], "F8_E4M3"),
            "model.layers.0.mlp.up_proj.weight": tensor(6, 12, [3, 2], "F8_E4M3"),
        }
        (directory / "model.safetensors").write_bytes(pack(tensors, b"twelve bytes"))

    return apply


def layers(*names: str, **changes: Any) -> Callable[[Path], None]:
    """A llama of two layers, 4 wide, with heads that are 2 wide, and these more tensors."""

    def apply(directory: Path) -> None:
        usual = {"model_type": "llama", "vocab_size": 3, "hidden_size": 4, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2}
        (directory / "config.json").write_text(json.dumps({**usual, **heads, **changes}))
        shapes = {"model.embed_tokens.weight": [3, 4]}
        for layer in range(2):
            shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = [4, 4]
            shapes[f"model.layers.{layer}.self_attn.k_proj.weight"] = [2, 4]
        shapes = {names[1] if names[:1] == (n,) else n: shape for n, shape in shapes.items()}
        tensors, at = {}, 0
        for name, (rows, columns) in shapes.items():
            tensors[name] = tensor(at, at := at + rows * columns, [rows, columns], "F8_E4M3")
        (directory / "model.safetensors").write_bytes(pack(tensors, b"x" * at))

    return apply


def shaped(name: str, *shape: int) -> Callable[[Path], None]:
    """One more tensor, of that shape, beside those of a llama of one layer, 2 wide and 3 inside."""

    def apply(directory: Path) -> None:
        heads = {"num_attention_heads": 1, "head_dim": 4, "num_key_value_heads": 1}
        says(intermediate_size=3, **heads)(directory)
        tensors = {
            "model.embed_tokens.weight": tensor(0, 6, [3, 2], "F8_E4M3"),
            name: tensor(6, 6 + math.prod(shape), [*shape], "F8_E4M3"),
        }
        content = b"x" * (6 + math.prod(shape))
        (directory / "model.safetensors").write_bytes(pack(tensors, content))

    return apply


def typed(dtype: str, name: str) -> Callable[[Path], None]:
    """The header says another dtype of one tensor of `layers()`, as wide as its own."""

    def apply(directory: Path) -> None:
        layers()(directory)
        content = (directory / "model.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header[name]["dtype"] = dtype
        (directory / "model.safetensors").write_bytes(pack(header, content[8 + length :]))

    return apply


def file(name: str, content: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / name).write_bytes(content.encode(encoding))

    return apply


def large(directory: Path) -> None:
    """One byte too many, in a file that takes no room on the disk."""
    os.truncate(directory / "tokenizer.json", limits.MODEL_PART_BYTES_MAX + 1)


def tokenizer(content: bytes) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / "tokenizer.json").write_bytes(content)

    return apply


REFUSED = [
    (says(model_type="evil"), r"of the type 'evil': transformers has none such here"),
    (says(model_type="lama"), r"of the type 'lama'.*did you mean 'llama'"),
    (says(vocab_size=4), r"embed_tokens\.weight has the shape \[3, 2\].* it would be \[4, 2\]"),
    (says(hidden_size=8), r"has the shape \[3, 2\].* it would be \[3, 8\]"),
    (says(hidden_size=-2), r"sets hidden_size to -2, and it has to be a whole number from 1"),
    (says(hidden_size="big"), r"sets hidden_size to 'big', and it has to be a whole number"),
    (says(num_attention_heads=0), "sets num_attention_heads to 0, and it has to be a whole number"),
    (says(num_attention_heads=3), "hidden states of 2 among 3 attention heads"),
    (says(intermediate_size=7), r"up_proj\.weight has the shape \[3, 2\].* it would be \[7, 2\]"),
    (
        shaped("model.layers.0.mlp.down_proj.weight", 3, 2),
        r"down_proj\.weight has the shape \[3, 2\].* would be \[2, 3\]",
    ),
    (
        shaped("model.layers.0.self_attn.o_proj.weight", 4, 2),
        r"o_proj\.weight has the shape \[4, 2\].* would be \[2, 4\]",
    ),
    (
        shaped("model.layers.0.input_layernorm.weight", 3),
        r"input_layernorm\.weight has the shape \[3\].* would be \[2\]",
    ),
    (shaped("model.norm.weight", 4), r"model\.norm\.weight has the shape \[4\].* would be \[2\]"),
    (shaped("lm_head.weight", 2, 3), r"lm_head\.weight has the shape \[2, 3\].* would be \[3, 2\]"),
    (says(hidden_size=10**9), r"has the shape \[3, 2\].* it would be \[3, 1000000000\]"),
    (says(model_type=""), r"its config\.json has no model_type, which says what it is"),
    (says(attention_dropout=2), "sets attention_dropout to 2, and it has to be a number from 0"),
    (says(rms_norm_eps=-1), "sets rms_norm_eps to -1, and it has to be a number above 0"),
    (layers(num_attention_heads=3, hidden_size=4), "4 among 3|q_proj.* it would be .6, 4"),
    (layers(num_key_value_heads=2), r"k_proj\.weight has the shape \[2, 4\].* would be \[4, 4\]"),
    (layers(head_dim=None, num_attention_heads=4), r"k_proj\.weight .* it would be \[1, 4\]"),
    (layers("model.embed_tokens.weight", "w"), "no embedding under a name that a llama has"),
    (
        layers("model.embed_tokens.weight", "../../etc/\0x"),
        r"a tensor called '\.\./.*x00x', which no",
    ),
    (
        layers("model.layers.1.self_attn.k_proj.weight", "model.layers.1.w"),
        r"layer 0 lacks 'w', which|layer 1 lacks 'self_attn\.k_proj\.weight'",
    ),
    (typed("I8", "model.embed_tokens.weight"), r"embed_tokens\.weight has the dtype I8, and its"),
    (typed("BOOL", "model.layers.1.self_attn.q_proj.weight"), r"q_proj\.weight has the dtype BOOL"),
    (says(rms_norm_eps="x"), "sets rms_norm_eps to 'x', and it has to be a number"),
    (
        says(hidden_act="sillu"),
        "sets hidden_act to 'sillu'.*no such activation.*did you mean 'silu'",
    ),
    (says(hidden_act=["silu"]), "sets hidden_act to .*no such activation"),
    (says(num_hidden_layers=2), r"weights for 1 of its layers, and by its config\.json it has 2"),
    (tokenizer(b""), r"its tokenizer\.json is none"),
    (tokenizer(b"<html>404</html>"), r"its tokenizer\.json is none \(JSON is malformed"),
    (tokenizer(b"{}"), r"its tokenizer\.json is none .*`model`"),
    (tokenizer(b'{"model": ' + b"[" * 100_000), r"its tokenizer\.json is none"),
    (file("tokenizer_config.json", "{"), r"cannot read tokenizer_config\.json: .*fetch it again"),
    (file("tokenizer_config.json", "[]"), r"cannot read tokenizer_config\.json: it is no object"),
    (file("generation_config.json", "{,}"), r"cannot read generation_config\.json: Expecting"),
    (file("config.json", "{}", "utf-16"), r"cannot read config\.json: it is no UTF-8, which JSON"),
    (file("config.json", "{}", "utf-8-sig"), r"cannot read config\.json: Unexpected UTF-8 BOM"),
    (says(pad_token_id=3), "sets pad_token_id to 3, and its vocab_size is 3"),
    (says(pad_token_id=-4), "sets pad_token_id to -4, and its vocab_size is 3"),
    (says(eos_token_id="</s>"), "sets eos_token_id to '</s>', and it has to be a token's number"),
    (says(eos_token_id=[1, True]), "sets eos_token_id to .*, and it has to be a token's number"),
    (
        file("generation_config.json", '{"bos_token_id": 1.5}'),
        r"its generation_config\.json sets bos_token_id to 1\.5",
    ),
    (
        file("chat_template.jinja", "a\n{% if"),
        r"its chat_template\.jinja is no template \(line 2: ",
    ),
    (file("chat_template.jinja", "é", "latin-1"), r"is no template \(it is no UTF-8\)"),
    (
        file("chat_template.jinja", "{{ " + "1" * 5000 + " }}"),
        r"is no template \(Exceeds the limit",
    ),
    (file("chat_template.jinja", "{{ 1\u0663.5 }}"), r"is no template \(invalid"),
    (file("chat_template.jinja", "{{" + "(" * 10_000), r"is no template \(it is nested too deeply"),
    (
        file("tokenizer_config.json", '{"chat_template": "{% nosuch %}"}'),
        r"its chat_template in tokenizer_config\.json is no template \(line 1: .*'nosuch'",
    ),
    (
        file("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "{{"}]}'),
        r"its chat_template in tokenizer_config\.json is no template",
    ),
    (large, r"register tokenizer\.json: it has 256\.0 ?MiB.*at most 256 ?MiB.*fetch it again"),
    (truncated, r"model\.safetensors: its tensors take 12 bytes, the file has 11"),
    (lying, r"model\.safetensors: .*its tensors take 1099511627776 bytes, the file has 1"),
    (only_pickle("pytorch_model.bin"), r"'pytorch_model\.bin': it is a pickle, and loading one"),
    (only_pickle("weights.pt"), r"'weights\.pt': it is a pickle"),
    (only_pickle("weights"), "'weights': it is a pickle"),
    (renamed_pickle, r"'model\.safetensors': it is a pickle"),
    (no_weights, "it has no safetensors weights"),
    (no_config, r"without a config\.json"),
    (link("model.safetensors", "{outside}"), "'model.safetensors': it is a link that leads out"),
    (link("config.json", "../outside"), "'config.json': it is a link that leads out"),
    (link("extra.json", "/etc/passwd"), "'extra.json': it is a link that leads out"),
    (link("extra.txt", "/proc/self/environ"), "'extra.txt': it is a link that leads out"),
    (link("extra.txt", "/dev/zero"), "'extra.txt': it is a link that leads out"),
    (link("extra.txt", "gone"), "'extra.txt': it is a link to nothing"),
    (link("extra.txt", "extra.txt"), "'extra.txt': it is a link to nothing"),
    (link_to_link, "'second.safetensors': it is a link"),
    (index({"w": "../outside.safetensors"}), r"names the file '\.\./outside\.safetensors'"),
    (index({"w": "/etc/passwd"}), "names the file '/etc/passwd', which is not among its files"),
    (index({"w": "second.safetensors"}), "is the download complete"),
    (index({"v": "model.safetensors"}), r"model\.safetensors lacks 'v'"),
    (index([]), "it has no weight_map"),
    (index({"w": 3}), "it has no weight_map"),
    (deep_config, r"cannot read config\.json: it is nested too deeply"),
    (raw_index, r"cannot read model\.safetensors\.index\.json"),
    (odd_name, r"called 'my notes \\U0001f600\.txt': rename it"),
    (long_name, "cannot register a file called 'xxxx"),
    (control_name, r"called 'a\\n\\x1b\[2J\.json'"),
    (many_files, "cannot register 1004 files: at most 1000"),
]


@pytest.mark.parametrize(("damage", "reason"), REFUSED, ids=[reason[:40] for _, reason in REFUSED])
def test_what_may_not_come_in(
    registry: Registry, root: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    write_model(tmp_path / "theirs")
    registry.import_directory(tmp_path / "theirs", "good")
    damage(tmp_path / "theirs")
    with pytest.raises(InvalidError, match=reason) as raised:
        registry.import_directory(tmp_path / "theirs", "bad")
    message = str(raised.value)
    assert message.startswith("cannot ")
    assert message.isprintable()
    assert len(message) < 600
    assert [version.ref for version in registry.list()] == ["good:1"]
    assert litter(root) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere", "it is no directory"),
        ("file", "it is no directory"),
        ("a\x00b", r"cannot import"),
        ("x" * 5000, "cannot import"),
    ],
)
def test_what_is_no_directory(registry: Registry, tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidError, match=reason) as raised:
        registry.import_directory(tmp_path / path, "m")
    assert len(str(raised.value)) < 1500
    assert str(raised.value).isprintable()


def test_pipes_and_directories_with_the_names_of_files_are_passed_by(
    registry: Registry, tmp_path: Path
) -> None:
    """Reading a pipe would wait for ever."""
    write_model(tmp_path / "theirs")
    os.mkfifo(tmp_path / "theirs/pipe.json")
    (tmp_path / "theirs/directory.safetensors").mkdir()
    version = registry.import_directory(tmp_path / "theirs", "m")
    assert sorted(version.files) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_links_inside_are_followed(registry: Registry, tmp_path: Path) -> None:
    write_model(tmp_path / "theirs")
    (tmp_path / "theirs/data").mkdir()
    (tmp_path / "theirs/model.safetensors").rename(tmp_path / "theirs/data/w")
    (tmp_path / "theirs/model.safetensors").symlink_to("data/w")
    (tmp_path / "link").symlink_to("theirs")
    version = registry.import_directory(tmp_path / "link", "m")
    content = (registry.path(version) / "model.safetensors").read_bytes()
    assert content == weights(b"some weights")


def test_a_file_that_changes_while_it_is_copied_is_checked_as_it_arrived(
    registry: Registry, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns the directory must not pass the check with one file and store another."""
    files = write_model(tmp_path / "theirs")
    add = Registry._add

    def while_it_changes(self: Registry, source: Path) -> Any:
        files["model.safetensors"].write_bytes(pack({"w": tensor(0, 2**40)}, b"x"))
        try:
            return add(self, source)
        finally:
            files["model.safetensors"].write_bytes(weights(b"some weights"))

    monkeypatch.setattr(Registry, "_add", while_it_changes)
    with pytest.raises(InvalidError, match=r"model\.safetensors"):
        registry.import_directory(tmp_path / "theirs", "m")
    assert registry.list() == []
    assert litter(root) == []


# -- export


def test_export_refuses_to_write_over_anything(registry: Registry, tmp_path: Path) -> None:
    registry.publish("m", write_model(tmp_path / "m"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.txt").write_text("mine")
    with pytest.raises(ConflictError, match=r"it exists already.*; give a directory that does not"):
        registry.export("m", tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(ConflictError, match="it exists already"):
        registry.export("m", tmp_path / "dangling")
    with pytest.raises(InvalidError, match="is no directory"):
        registry.export("m", tmp_path / "no/such/place")
    (tmp_path / "dangling").unlink()
    (tmp_path / "dangling").symlink_to("models")
    for inside in ("models/out", "models/blobs/sha256/xx", "dangling/out"):
        with pytest.raises(InvalidError, match=r"inside the registry's own .* elsewhere"):
            registry.export("m", tmp_path / inside)
    with pytest.raises(NotFoundError, match="cannot find the model 'n'"):
        registry.export("n", tmp_path / "out")
    with pytest.raises(InvalidError, match="cannot export to"):
        registry.export("m", tmp_path / ("x" * 300))
    with pytest.raises(InvalidError, match="cannot export to"):
        registry.export("m", tmp_path / "a\x00b")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"m", "there", "dangling", "models"}


def test_the_same_export_again_finds_the_first_and_nothing_else(
    registry: Registry, tmp_path: Path
) -> None:
    files = write_model(tmp_path / "m")
    registry.publish("m", files)
    out = tmp_path / "out"
    registry.export("m", out)
    before = {path.name: path.stat().st_ino for path in out.iterdir()}
    registry.export("m:1", out)
    assert {path.name: path.stat().st_ino for path in out.iterdir()} == before
    name = next(name for name in files if name.endswith(".safetensors"))
    content = (out / name).read_bytes()

    def refused() -> None:
        with pytest.raises(ConflictError, match="it exists already"):
            registry.export("m", out)

    (out / "mine.txt").write_text("mine")
    refused()
    (out / "mine.txt").unlink()
    (out / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused()
    (out / name).unlink()
    refused()
    (out / name).symlink_to(files[name])
    refused()
    (out / name).unlink()
    os.mkfifo(out / name)
    refused()
    (out / name).unlink()
    (out / name).write_bytes(content)
    registry.export("m", out)


def test_exports_at_once_to_one_place_all_succeed(registry: Registry, tmp_path: Path) -> None:
    registry.publish("m", write_model(tmp_path / "m"))
    barrier = threading.Barrier(4)

    def export(_: int) -> None:
        barrier.wait(30)
        registry.export("m", tmp_path / "out")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(export, range(4)))
    assert {path.name for path in tmp_path.iterdir()} == {"m", "out", "models"}


def test_what_is_exported_belongs_to_its_owner(registry: Registry, tmp_path: Path) -> None:
    files = write_model(tmp_path / "m")
    registry.publish("m", files)
    registry.export("m:1", tmp_path / "out")
    for name, path in files.items():
        assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()
        (tmp_path / "out" / name).write_bytes(b"changed")  # the registry's own is another file
    registry.verify(registry.resolve("m"))
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
