"""Talking to a model in the terminal: a chat, or texts that it goes on with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING, Any

from zenos.cli.output import clean, put_json, say
from zenos.cli.waiting import saying_room

if TYPE_CHECKING:
    from zenos.client import Client, Generation

PROMPT = ">>> "
HELP = "/clear forgets the conversation, /bye or Ctrl-D ends, Ctrl-C stops an answer."


class Conversation:
    """What has been said so far, and the next answer to it."""

    def __init__(
        self,
        client: Client,
        model: str,
        settings: Mapping[str, Any],
        *,
        chat: bool,
        system: str | None,
    ) -> None:
        self._client = client
        self._model = model
        self._settings = dict(settings)
        self._chat = chat
        self._system = system
        self._messages: list[dict[str, str]] = []
        self.clear()

    def clear(self) -> None:
        """Forget what was said."""
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def ask_once(self, prompt: str, *, json: bool) -> None:
        """One answer, streamed, or whole as JSON."""
        answer = self._ask(prompt)
        if json:
            with saying_room(self._model):
                text = answer.text()
            made: dict[str, Any] = {"model": self._model, "text": text, "finish": answer.finish()}
            if answer.usage is not None:
                made["usage"] = {
                    "prompt_tokens": answer.usage.prompt_tokens,
                    "completion_tokens": answer.usage.completion_tokens,
                }
            put_json(made)
            return
        with answer, saying_room(self._model) as answered:
            text = _stream(answer, answered)
        if not text.endswith("\n"):
            sys.stdout.write("\n")
        sys.stdout.flush()

    def interact(self) -> None:
        """Prompt after prompt until the input ends."""
        with suppress(ImportError):
            import readline  # noqa: F401 - importing it gives input() editing and history
        say(f"{self._model}: {'chat' if self._chat else 'it goes on with your text'}. {HELP}")
        while True:
            try:
                prompt = input(PROMPT)
            except EOFError:
                sys.stdout.write("\n")
                return
            except KeyboardInterrupt:
                say("\n/bye or Ctrl-D ends")
                continue
            match prompt.rstrip():
                case "":
                    continue
                case "/bye" | "/exit" | "/quit":
                    return
                case "/clear":
                    self.clear()
                case "/?" | "/help":
                    say(HELP)
                case word if word.startswith("/") and word[1:].isalpha():
                    say(f"there is no {word}. {HELP} With a blank before it, it is a prompt.")
                case _:
                    self._turn(prompt)

    def _turn(self, prompt: str) -> None:
        from zenos.cli.errors import tell
        from zenos.cli.streams import OutputError
        from zenos.core.errors import NoDaemonError, ZenosError

        answer = self._ask(prompt)
        text = ""
        try:
            with answer, saying_room(self._model) as answered:
                text = _stream(answer, answered)
        except KeyboardInterrupt:
            text = answer.so_far()
        except (NoDaemonError, OutputError):
            raise
        except ZenosError as error:
            tell(error)
            if self._chat:
                self._messages.pop()
            return
        sys.stdout.write("\n")
        if self._chat:
            self._messages.append({"role": "assistant", "content": text})

    def _ask(self, prompt: str) -> Generation:
        if not self._chat:
            return self._client.generate(self._model, prompt, **self._settings)
        self._messages.append({"role": "user", "content": prompt})
        return self._client.generate(self._model, messages=self._messages, **self._settings)


def _stream(answer: Generation, answered: Event) -> str:
    """Write the chunks of the first choice as they come; a terminal gets no control characters."""
    plain = not sys.stdout.isatty()
    for chunk in answer:
        answered.set()
        if chunk.index == 0 and chunk.text:
            sys.stdout.write(chunk.text if plain else clean(chunk.text, lines=True))
            sys.stdout.flush()
    return answer.so_far()
