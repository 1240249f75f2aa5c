"""Chat templates as files: which one counts, and whether it can be read at all.

What a template does is known to who renders it (`zenos.runtime.engine.chat`); here it is only
parsed, which runs nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from zenos.core import limits
from zenos.core.errors import InvalidError

FILE: Final = "chat_template.jinja"
# Larger ones are looked at by who renders them: parsing takes seconds for a megabyte.
LOOKED_AT_BYTES_MAX: Final = 64 * limits.KIB


class Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what a model is trained on: nothing here."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


EXTENSIONS: Final[tuple[str | type[Extension], ...]] = ("jinja2.ext.loopcontrols", Generation)


def of_config(config: Mapping[str, Any]) -> str | None:
    """The template in a tokenizer_config.json: of several the one named "default"."""
    source = config.get("chat_template")
    if isinstance(source, list):
        named = [t for t in source if isinstance(t, dict) and t.get("name") == "default"]
        source = named[-1].get("template") if named else None
    return source if isinstance(source, str) else None


def check(files: Mapping[str, Path], config: Mapping[str, Any]) -> None:
    """Raises InvalidError for a template that cannot be parsed.

    config: the tokenizer_config.json among the files.
    """
    name, source = FILE, of_config(config)
    try:
        if FILE in files:
            with files[FILE].open(encoding="utf-8") as file:
                source = file.read(LOOKED_AT_BYTES_MAX + 1)
        else:
            name = "chat_template in tokenizer_config.json"
        if source is None or len(source) > LOOKED_AT_BYTES_MAX:
            return
        jinja2.Environment(extensions=EXTENSIONS).parse(source)  # noqa: S701 - writes no HTML
    except UnicodeDecodeError:
        why = "it is no UTF-8"
    except jinja2.TemplateSyntaxError as error:
        why = f"line {error.lineno}: {str(error.message)[:200]}"
    except RecursionError:
        why = "it is nested too deeply"
    except (ValueError, SyntaxError) as error:  # of Python's, for what looks like a number
        why = str(error)[:200]
    except OSError as error:
        raise InvalidError(f"cannot read {FILE}: {error.strerror or error}") from error
    else:
        return
    raise InvalidError(
        f"cannot import this model: its {name} is no template ({why}); mend it, or take it out"
    )
