"""A chat template with what it needs of one model: turns to text, text to tokens. Called by pysa.chat and pysa.cli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pysa.chat.turn import Turn
from pysa.chat_template import DEFAULT_NAME, TEMPLATE_KEY, ChatTemplate, special_texts, template_sources
from pysa.errors import ArgumentError, ModelFileError
from pysa.model import Model


class Renderer:
    """Writes turns as the model expects them.

    Args:
        model: whose vocabulary it is.
        template: the model's own, or what replaces it.
        stop: text that ends an answer, besides the tokens that do; empty for none.
        variables: more that the template has to know.
    """

    def __init__(
        self, model: Model, template: ChatTemplate, stop: str = "", variables: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model
        self.stop = stop
        self.options: dict[str, Any] = {}  # more that it may know, e.g. enable_thinking
        self._template = template
        self._variables = dict(variables or {})
        self._bos, self._eos = special_texts(model)

    def render(self, system: str, turns: Sequence[Turn]) -> str:
        """The text of a conversation, up to where the answer to the last turn begins.

        Args:
            system: the system message; empty for none.
            turns: oldest first; of the last one, the answer is left out.

        Raises:
            ArgumentError: the template refuses such a conversation.
            ModelFileError: the template is faulty.
        """
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        for turn in turns:
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.answer})
            if turn.thinking:  # templates that want it in some place look for it here
                messages[-1]["reasoning_content"] = turn.thinking
        variables = {**self.options, **self._variables}
        return self._template.render(messages[:-1], bos=self._bos, eos=self._eos, **variables)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a rendered conversation."""
        # A template that writes BOS itself would otherwise get two.
        tokens = self.model.tokenize(text, add_special=not (self._bos and text.startswith(self._bos)))
        vocab = self.model.native.vocab
        if vocab.add_eos and not text.endswith(self._eos) and tokens[-1:] == [vocab.eos]:
            tokens.pop()  # the answer comes behind it
        return tokens

    def tokenize_more(self, before: str, text: str) -> list[int]:
        """The tokens of `text` where it goes on from `before`; together they are a rendered conversation."""
        if not before:
            return self.tokenize(text)
        whole, head = self.tokenize(before + text), self.tokenize(before)
        if whole[: len(head)] == head:
            return whole[len(head) :]
        # A token would reach over the seam. SentencePiece puts a space before a text, but not behind a line's end.
        head = self.model.tokenize("\n", add_special=False)
        whole = self.model.tokenize("\n" + text, add_special=False)
        return whole[len(head) :] if whole[: len(head)] == head else self.model.tokenize(text, add_special=False)


def find_renderer(model: Model, template: str | None) -> Renderer:
    """The renderer that `--chat-template` asks for.

    Args:
        model: whose turns it writes.
        template: the name of one of the model's templates or of a common one, or a Jinja file; None takes the model's.

    Raises:
        ModelFileError: the model has no template.
        ArgumentError: there is neither such a name nor such a file.
        OSError: the file cannot be read.
    """
    own = template_sources(model.metadata)
    if template is None and DEFAULT_NAME not in own:
        raise ModelFileError(
            f"{model.path}: it has no chat template: expected {TEMPLATE_KEY}, got none; "
            "give one with --chat-template FILE or NAME, as --chat-template chatml"
        )
    name = DEFAULT_NAME if template is None else template
    if name in own:
        return Renderer(model, ChatTemplate(own[name]))
    from pysa.llama.named_formats import NAMED_FORMATS  # noqa: PLC0415  the familiar class comes with them

    if name in NAMED_FORMATS:
        row = NAMED_FORMATS[name]
        return Renderer(model, ChatTemplate(row.template, name), row.stop or "", row.variables)
    path = Path(name)
    if not path.is_file():
        raise ArgumentError(
            f"--chat-template: {name}: expected a file or one of {', '.join([*own, *NAMED_FORMATS])}, got neither"
        )
    try:
        return Renderer(model, ChatTemplate(path.read_bytes().decode("utf-8"), name))
    except UnicodeDecodeError as error:
        raise ArgumentError(f"--chat-template: {name}: not UTF-8 at byte {error.start}: expected text") from None
