"""From messages to a prompt: the tokenizer's own template, or a plain one.

Templates come with models, and so are not trusted: they run in jinja2's sandbox, without access to
anything but the messages, and with bounds on their length, their loops and what they write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from zenos.core import limits
from zenos.core.errors import InvalidError

PLAIN: Final = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEMPLATE_BYTES_MAX: Final = 256 * limits.KIB
PROMPT_CHARS_MAX: Final = 16 * limits.MIB
RANGE_MAX: Final = 10_000
ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})


class _Sandbox(ImmutableSandboxedEnvironment):
    """No attribute that leads anywhere, no change of what is given, no long range."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiplying text or large numbers is how a short template writes a long answer."""
        if (
            operator == "**"
            or isinstance(left, str | list | tuple)
            or isinstance(right, str | list)
        ):
            raise jinja2.TemplateRuntimeError("multiplication of this kind is not allowed")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A model's template. `own` says whether it came with the model."""

    def __init__(self, source: str | None, special: dict[str, str]) -> None:
        self.own = source is not None
        self._special = special
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        environment.globals["range"] = _range
        environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
        try:
            self._template = environment.from_string(source or PLAIN)
        except (jinja2.TemplateError, RecursionError) as error:
            raise InvalidError(f"cannot use the model's chat template: {error}") from error

    @classmethod
    def read(cls, directory: Path) -> ChatTemplate:
        """The template of a model's directory: chat_template.jinja, or tokenizer_config.json's."""
        config: dict[str, Any] = {}
        path = directory / "tokenizer_config.json"
        if path.exists():
            config = json.loads(path.read_bytes())
        source = config.get("chat_template")
        if (directory / "chat_template.jinja").exists():
            source = (directory / "chat_template.jinja").read_text(encoding="utf-8")
        if isinstance(source, str) and len(source) > TEMPLATE_BYTES_MAX:
            raise InvalidError("cannot use the model's chat template: it is too long")
        special = {
            name: _text(config[name])
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if config.get(name)
        }
        return cls(source if isinstance(source, str) else None, special)

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The prompt. InvalidError for messages that the template doesn't take."""
        for message in messages:
            if message.get("role") not in ROLES:
                role = str(message.get("role"))[:40]
                raise InvalidError(
                    f"cannot use the role {role!r}: one of {', '.join(sorted(ROLES))}"
                )
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(
                messages=messages, add_generation_prompt=True, **self._special
            ):
                length += len(piece)
                if length > PROMPT_CHARS_MAX:
                    raise InvalidError("cannot use these messages: the prompt becomes too long")
                pieces.append(piece)
        except InvalidError:
            raise
        except Exception as error:
            # A template is a program of the model's author: it may fail in any way.
            raise InvalidError(
                f"cannot use these messages with the model's chat template: {str(error)[:200]}"
            ) from error
        return "".join(pieces)


def _raise(message: str) -> None:
    raise jinja2.TemplateRuntimeError(message)


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if len(made) > RANGE_MAX:
        raise jinja2.TemplateRuntimeError(f"a range of more than {RANGE_MAX} is not allowed")
    return made


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)
