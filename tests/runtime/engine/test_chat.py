"""From messages to a prompt, with templates that nobody should trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.runtime.engine.conftest import byte_level
from zenos.core.errors import InvalidError
from zenos.runtime.engine.chat import ChatTemplate

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who runs?"},
    {"role": "assistant", "content": "The river."},
    {"role": "user", "content": "Where?"},
]
OWN = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def directory(path: Path, **config: Any) -> Path:
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_the_plain_template_names_the_speakers(tmp_path: Path) -> None:
    template = ChatTemplate.read(directory(tmp_path))
    assert not template.own
    assert template.render(TALK) == (
        "system: Be brief.\nuser: Who runs?\nassistant: The river.\nuser: Where?\nassistant:"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ messages[1] | tojson }}{{ {'a': '<b> & é'} | tojson(indent=2) }}",
        "{{ strftime_now('%Y') }}",
        [{"name": "tools", "template": "no"}, {"name": "default", "template": OWN}],
    ],
)
def test_what_templates_use_is_there_as_in_transformers(tmp_path: Path, source: Any) -> None:
    directory(tmp_path, eos_token="<|end|>", chat_template=source)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    wanted = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert wanted
    assert ChatTemplate.read(tmp_path).render(TALK) == wanted


@pytest.mark.parametrize("as_file", [False, True])
def test_a_template_of_its_own_renders_as_transformers_renders_it(
    tmp_path: Path, as_file: bool
) -> None:
    directory(tmp_path, eos_token="<|end|>", **({} if as_file else {"chat_template": OWN}))
    if as_file:
        (tmp_path / "chat_template.jinja").write_text(OWN)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    template = ChatTemplate.read(tmp_path)
    assert template.own
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    wanted = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert template.render(TALK) == wanted


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% for _ in range(10**9) %}x{% endfor %}",
        "{% for _ in range(100000000) %}x{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ (100000 * (1, 2)) | length }}",
        "{{ lipsum(n=2) | length }}",
        "{% for _ in range(9000) %}{% for _ in range(9000) %}xxxxxxxx{% endfor %}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ nothing.at.all }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_that_reaches_out_or_never_ends_is_an_error(source: str) -> None:
    with pytest.raises(InvalidError, match="cannot use these messages"):
        ChatTemplate(source, {}).render(TALK)


@pytest.mark.parametrize("source", ["{% for %}", "{{ ", "{% endfor %}", "{{ 1 | nosuchfilter }}"])
def test_a_broken_template_fails_chats_when_they_come(source: str) -> None:
    template = ChatTemplate(source, {})  # the model can be loaded, for all else
    with pytest.raises(InvalidError, match="cannot use the model's chat template"):
        template.render(TALK)


def test_an_unknown_role_is_named() -> None:
    with pytest.raises(InvalidError, match="cannot use the role 'wizard'"):
        ChatTemplate(None, {}).render([{"role": "wizard", "content": "x"}])


def test_a_template_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="it is too long"):
        ChatTemplate.read(directory(tmp_path, chat_template="x" * 300_000)).render(TALK)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_tokenizer_config_fails_chats_with_the_reason(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InvalidError, match="cannot use the model's chat template: "):
        ChatTemplate.read(tmp_path).render(TALK)
