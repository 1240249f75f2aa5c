"""Completion in the shells: the script for bash, and whose script is shown or installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import typer

OPTIONS: Final = ("--show-completion", "--install-completion")
# Typer's, but for names with a version: bash splits words at ':' (COMP_WORDBREAKS). They are put
# together for us to complete, and what is on the line before the last ':' is left out of the
# answer, since bash puts that in place of what is behind it alone.
BASH: Final = r"""
%(complete_func)s() {
    local IFS=$'\n' line="$COMP_LINE" word current i
    local -a words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word="${COMP_WORDS[i]}"
        if ((i > 0)) && [[ "$line" != [[:blank:]]* ]] &&
            [[ "$word" == :* || "${COMP_WORDS[i-1]}" == *: ]]; then
            words[${#words[@]}-1]+="$word"
        else
            words+=("$word")
        fi
        line="${line#*"$word"}"
    done
    COMPREPLY=( $( env COMP_WORDS="${words[*]}" \
                   COMP_CWORD=$((${#words[@]} - 1)) \
                   %(autocomplete_var)s=complete_bash $1 ) )
    current="${words[${#words[@]}-1]}"
    if [[ "$current" == *:* && "$COMP_WORDBREAKS" == *:* ]]; then
        COMPREPLY=( "${COMPREPLY[@]#"${current%%"${current##*:}"}"}" )
    fi
    return 0
}

complete -o default -F %(complete_func)s %(prog_name)s
"""


def answer(command: Any, context: Any, words: Sequence[str]) -> None:
    """Show or install the script, of the shell that is named, else of the one around; ends then.

    Nothing where the words ask for something else. Typer would take no notice of a shell's name.
    """
    option = next((word for word in words if word in OPTIONS), None)
    if option is None or words[0] != option:
        return
    from typer import _completion_shared as shared
    from typer import completion

    shared._completion_scripts["bash"] = BASH
    if len(words) == 1:
        return  # Typer finds out which shell it is
    known = [shell.value for shell in shared.Shells]
    parameter = next(one for one in command.params if option in one.opts)
    if len(words) > 2 or words[1] not in known:
        which = " ".join(words[1:])[:64]
        raise typer.BadParameter(
            f"{which!r} is no shell that it is for: give one of {', '.join(known)}, or nothing for "
            "the one around",
            ctx=context,
            param=parameter,
        )
    act = completion.show_callback if option == OPTIONS[0] else completion.install_callback
    act(context, parameter, words[1])
