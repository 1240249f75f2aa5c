"""From messages to a prompt, with templates that nobody should trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import transformers

from tests.runtime.engine.conftest import byte_level
from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.runtime.engine import chat
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
        "{% for m in messages if m.role != 'system' %}{{ loop.length }}{{ loop.last }}"
        "{{ loop.revindex }}{{ (loop.nextitem or m).role ~ '/' ~ loop.index0 ~ (1 + 2) }}"
        "{% endfor %}",
        "{% for k, v in messages[0].items() %}{{ k + '=' + v }}{% else %}none{% endfor %}"
        "{% for x in [] %}{{ x }}{% else %}none{% endfor %}{{ [1] + [2] }}{{ nothing ~ 'x' }}",
        "{% macro show(m, deep=2) %}{{ m.role }}{% if deep %}{{ show(m, deep - 1) }}{% endif %}"
        "{% endmacro %}{{ show(messages[0]) }}",
        "{% for x in [1, [2, [3]]] recursive %}{{ loop.depth }}"
        "{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{% endif %}{% endfor %}",
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
        "{% set ns = namespace(x='xxxxxxxxxx') %}"
        "{% for _ in range(50) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
        "{% set ns = namespace(x='xxxxxxxxxx') %}"
        "{% for _ in range(50) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}",
        "{% set ns = namespace(x=[1]) %}"
        "{% for _ in range(50) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
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


class Ticking:
    """A clock that goes on by a millisecond each time that somebody looks."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks / 1000


LOOPS = "{% for _ in range(10000) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    "source",
    [
        LOOPS,
        "{% set many = range(9999) | list %}{% for a in many %}{% for b in many if b > 9999 %}"
        "{% endfor %}{% endfor %}",
        # Depth is bounded by Python, breadth is not.
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for x in [60] recursive %}{% if x %}{{ loop([x - 1, x - 1]) }}{% endif %}{% endfor %}",
        "{% block b %}{% for _ in range(9999) %}{{ self.b() if false }}{% for _ in range(9999) %}"
        "{% endfor %}{% endfor %}{% endblock %}",
    ],
)
def test_a_template_that_takes_long_is_ended(source: str) -> None:
    clock = Ticking()
    template = ChatTemplate(source, {}, now=clock)
    assert not template.overran
    with pytest.raises(InvalidError, match="it takes longer than 2 s for these messages; ask for"):
        template.render(TALK)
    assert template.overran
    assert clock.looks < 1000 * limits.CHAT_TEMPLATE_S + 10


@pytest.mark.parametrize(
    "source",
    [
        "{{ [] | slice(2000000) | list | length }}",
        "{{ [1] | batch(2000000, 'x') | list | length }}",
        "{{ 'x' | center(width=2000000) | length }}",
        "{{ 'x' | indent(2000000, true) | length }}",
        "{{ [1] | tojson(indent=2000000) | length }}",
        "{{ 1 | round(200000, 'ceil') }}",
        "{{ [[1]] | map('batch', 2000000, 'x') | map('list') | list | length }}",
    ],
)
def test_a_number_that_makes_a_filter_long_is_refused(source: str) -> None:
    with pytest.raises(InvalidError, match="with more than 1000 is not allowed"):
        ChatTemplate(source, {}).render(TALK)


@pytest.mark.parametrize("operator", ["*", "//", "%"])
def test_calculations_with_very_long_numbers_are_refused(operator: str) -> None:
    source = "{% set n = ('1' | list | join | center(900)).replace(' ', '1') | int %}"
    source += f"{{{{ n {operator} (n + 1) }}}}"
    with pytest.raises(InvalidError, match="numbers as long as these are not allowed"):
        ChatTemplate(source, {}).render(TALK)


def test_filters_and_tests_do_what_they_do_in_jinja() -> None:
    source = (
        "{{ [1, 2, 3] | batch(2) | list }}{{ 2.567 | round(1) }}{{ 123456 | round }}"
        "{{ 'x' | center(3) }}{{ ['b', 'a'] | sort | map('upper') | join('-') }}"
        "{{ [1, 2] | select('odd') | list }}{{ n | default(4096) }}{{ 'a b' | wordwrap(1) }}"
        "{{ {'a': 1} | tojson(indent=1) }}{{ 7 // 2 }}{{ 7 % 4 }}{{ '%s!' % 'x' }}{{ 3 / 2 }}"
    )
    plain = jinja2.Environment(trim_blocks=True).from_string(source).render()  # noqa: S701
    assert ChatTemplate(source, {}).render(TALK) == plain


def test_each_filter_of_a_chain_looks_at_the_time() -> None:
    """Each of these is short; what they make together is a thousand times as long as its text."""
    source = "{{ range(9999) | batch(1) | map('slice', 900) | map('list') | list | length }}"
    clock = Ticking()
    with pytest.raises(InvalidError, match="it takes longer than 2 s"):
        ChatTemplate(source, {}, now=clock).render(TALK)
    assert clock.looks < 1000 * limits.CHAT_TEMPLATE_S + 10


def test_a_sum_of_lists_looks_at_the_time() -> None:
    source = "{{ range(3000) | batch(1) | sum(start=[]) | length }}"
    with pytest.raises(InvalidError, match="it takes longer than 2 s"):
        ChatTemplate(source, {}, now=Ticking()).render(TALK)
    assert ChatTemplate("{{ [[1], [2]] | sum(start=[]) }}", {}).render(TALK) == "[1, 2]"


@pytest.mark.parametrize(
    "compared",
    [
        "a == b",
        "a in [b]",
        "a is eq(b)",
        "[a, b] | max",
        "[a] | unique | list | length",
        "[[a, 1]] | groupby(0) | length",
        "{'x': a, 'y': b} | dictsort(by='value') | length",
        "{a: 1} | length",
        "{}[a]",
        "{}.get(a)",
        "dict([[a, 1]]) | length",
        "[a].index(b)",
    ],
)
def test_what_is_compared_is_bounded_as_often_as_it_is_there(compared: str) -> None:
    """Each of the two takes some hundred bytes, and has millions of numbers in it."""
    source = (
        "{% set all = namespace(a=1, b=1) %}{% for _ in range(21) %}"
        "{% set all.a = (all.a, all.a) %}{% set all.b = (all.b, all.b) %}{% endfor %}"
        f"{{% set a, b = all.a, all.b %}}{{% set found = {compared} %}}"
    )
    with pytest.raises(InvalidError, match="it puts together more than is allowed"):
        ChatTemplate(source, {}).render(TALK)
    assert ChatTemplate(source.replace("range(21)", "range(2)"), {}).render(TALK) == ""


def test_a_value_that_changes_in_a_loop_is_bounded() -> None:
    source = (
        "{% set all = namespace(a=1) %}{% for _ in range(N) %}{% set all.a = (all.a, all.a) %}"
        "{% endfor %}{% for _ in 'xy' %}{% set found = loop.changed(all.a) %}{% endfor %}"
    )
    assert ChatTemplate(source.replace("N", "2"), {}).render(TALK) == ""
    with pytest.raises(InvalidError, match="it puts together more than is allowed"):
        ChatTemplate(source.replace("N", "21"), {}).render(TALK)


def test_each_prompt_has_all_of_its_time() -> None:
    """As long as two together would not have: the time is of a rendering, not of the template."""
    template = ChatTemplate("{% for _ in range(1500) %}{% endfor %}x", {}, now=Ticking())
    assert [template.render(TALK) for _ in range(3)] == ["x"] * 3
    assert not template.overran


def test_nothing_of_a_template_is_worked_out_before_it_has_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(chat, "_tojson", lambda value: called.append(value) or "x")
    template = ChatTemplate("{{ 5 | tojson }}", {})
    assert called == []
    assert template.render(TALK) == "x"
    assert called == [5]
