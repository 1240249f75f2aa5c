"""Small models of several families with a real tokenizer, and engines over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from zenos.core.specs import ServeSpec
from zenos.core.wire import Chunk, GenerateRequest, Sampling
from zenos.runtime.engine.engine import Engine
from zenos.runtime.engine.serve import Loaded

VOCABULARY = 320
TEXT = [
    "the river ran over old stones while green fields lay under clouds",
    "naïve café, 日本語, Ελλάδα, emoji 😀🎉 and more",
    "def f(x):\n    return [x + 1 for _ in range(10)]\n",
]
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=0,
        bos_token_id=0,
    ),
    "qwen3": lambda: transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=0,
        bos_token_id=0,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=512,
        initializer_range=0.3,
        eos_token_id=0,
        bos_token_id=0,
    ),
}


class Made(NamedTuple):
    """A model's directory, and the same weights in transformers."""

    path: Path
    model: Any

    def engine(self, **changes: Any) -> Engine:
        """A fresh engine in float32."""
        return self.loaded(**changes).engine

    def loaded(self, **changes: Any) -> Loaded:
        settings = {"model": "m", "deployment": "m", "dtype": "float32", "slots": 4, **changes}
        return Loaded(self.path, ServeSpec(**settings))

    def greedy_through(self, prompt: list[int], count: int) -> list[int]:
        """What transformers generates, going on through the end of text."""
        with torch.no_grad():
            out = self.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=VOCABULARY + 1,
            )
        return [int(token) for token in out[0, len(prompt) :]]

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Of every position, shape (tokens, vocabulary)."""
        with torch.no_grad():
            found: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return found


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A model of a family, made once."""
    cache: dict[str, Made] = {}

    def make(family: str) -> Made:
        if family not in cache:
            path = tmp_path_factory.mktemp(family)
            torch.manual_seed(7)
            config = CONFIGS[family]()
            model = transformers.AutoModelForCausalLM.from_config(config).eval()
            model.save_pretrained(path)
            byte_level().save(str(path / "tokenizer.json"))
            (path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
            cache[family] = Made(path, model)
        return cache[family]

    return make


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest, made: Callable[[str], Made]) -> Made:
    """Each family: two that are run natively, and one through transformers' own code."""
    return made(request.param)


@pytest.fixture
def llama(made: Callable[[str], Made]) -> Made:
    return made("llama")


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


class Answers:
    """What an engine has said, by request and choice."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.chunks: list[Chunk] = []

    def step(self) -> None:
        self.chunks += self.engine.step()

    def drain(self, steps: int = 5000) -> None:
        for _ in range(steps):
            if self.engine.idle:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def of(self, request: str, index: int = 0) -> list[Chunk]:
        return [c for c in self.chunks if c.request == request and c.index == index]

    def text(self, request: str, index: int = 0) -> str:
        return "".join(chunk.text for chunk in self.of(request, index))

    def finish(self, request: str, index: int = 0) -> str | None:
        return self.of(request, index)[-1].finish

    def finish_or_none(self, request: str) -> str | None:
        return self.finish(request) if self.of(request) else None


def ask(
    engine: Engine, id_: str, prompt: list[int], *, priority: int = 50, **sampling: Any
) -> None:
    """Submit; greedy and without an end of its own unless told otherwise."""
    settings = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, **sampling}
    echo = bool(settings.pop("echo", False))
    engine.submit(
        GenerateRequest(
            id=id_, tokens=prompt, sampling=Sampling(**settings), priority=priority, echo=echo
        ),
        prompt,
    )


def answer(engine: Engine, prompt: list[int], **sampling: Any) -> Answers:
    """One request, to its end."""
    answers = Answers(engine)
    ask(engine, "r", prompt, **sampling)
    answers.drain()
    return answers
