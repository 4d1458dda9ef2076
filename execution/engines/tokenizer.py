"""Tokenizers and incremental detokenising, shared by all engines and the gateway; no torch here.

    tokenizer = load_tokenizer("tiny-llama")          # a built-in model: one token a byte, and a few markers
    tokenizer = load_tokenizer("/models/llama-3.1")   # a directory with tokenizer.json and a chat template
    text = Detokeniser(tokenizer, stop=("END",))      # one a request
    text.push(token_id); text.flush()

`tokenizers` and `jinja2` are imported only for directories that hold a tokenizer.json.
"""

from __future__ import annotations

import codecs
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from execution.engines.models import load_config
from execution.engines.vocabulary import BOS_ID, BYTE_VOCAB_SIZE, EOS_ID, ROLE_IDS
from loop.contracts.engine import EngineError, Tokenizer

_REPLACEMENT: Final = "\ufffd"
_MARK: Final = "\ue000"
"""Private-use character that stands for a special token's text inside a message."""


def load_tokenizer(model: str | Path) -> Tokenizer:
    """The tokenizer of a built-in model (by name) or of a directory; bytes where the directory has none.

    Raises EngineError, naming the file, when there is no such model or its tokenizer cannot be read.
    """
    config = load_config(model)  # also says which names there are
    directory = Path(model)
    if directory.is_dir() and (directory / "tokenizer.json").is_file():
        return DirectoryTokenizer(directory, extra_eos=config.eos_token_ids)
    if config.vocab_size < BYTE_VOCAB_SIZE - 2:
        raise EngineError(
            f"{model}: no tokenizer.json, and its vocabulary of {config.vocab_size} is too small for one token a "
            f"byte ({BYTE_VOCAB_SIZE - 2} are needed): add a tokenizer.json"
        )
    return ByteTokenizer(config.vocab_size, config.eos_token_ids or frozenset((EOS_ID,)))


class ByteTokenizer:
    """One token a byte of UTF-8, and markers for the ends of texts and for roles."""

    def __init__(
        self, vocab_size: int = BYTE_VOCAB_SIZE, eos_token_ids: frozenset[int] = frozenset((EOS_ID,))
    ) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self._vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self._eos_token_ids

    def encode(self, text: str) -> list[int]:
        """Bytes of the text; lone surrogates become `?`."""
        return list(text.encode("utf-8", "replace"))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """`bos (role content eos)* assistant`. Raises ValueError for an unknown role or no message."""
        if not messages:
            raise ValueError("a conversation needs at least one message")
        ids = [BOS_ID]
        for message in messages:
            role = message.get("role", "")
            if role not in ROLE_IDS:
                raise ValueError(f"unknown role {role!r}: this model knows {', '.join(ROLE_IDS)}")
            ids += [ROLE_IDS[role], *self.encode(message.get("content", "")), EOS_ID]
        return [*ids, ROLE_IDS["assistant"]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the bytes; other tokens are left out."""
        return bytes(i for i in token_ids if i < 256).decode("utf-8", "replace")

    def incremental(self) -> tuple[Callable[[int], str], Callable[[], str]]:
        """(takes token after token and returns the characters that became whole, ends with the rest)."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode

        def feed(token_id: int) -> str:
            return decode(bytes((token_id,))) if token_id < 256 else ""

        return feed, lambda: decode(b"", final=True)


class DirectoryTokenizer:
    """`tokenizer.json` of a model directory, and the chat template beside it (rendered in jinja2's sandbox)."""

    def __init__(self, directory: Path, extra_eos: frozenset[int] = frozenset()) -> None:
        try:
            import tokenizers  # noqa: PLC0415 only where a directory needs it
        except ImportError as error:
            raise EngineError(
                f"{directory}/tokenizer.json needs the package tokenizers: pip install 'autopoiesis[torch]'"
            ) from error
        path = directory / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise EngineError(f"{path}: not a tokenizer: {error}") from error
        self._config = _read_json(directory / "tokenizer_config.json")
        self._template = _template_text(directory, self._config)
        self._specials = {
            token.content: i
            for i, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        eos = _token_text(self._config.get("eos_token"))
        named = {self._tokenizer.token_to_id(eos)} if eos else set()
        self._eos_token_ids = frozenset(i for i in named | extra_eos if i is not None)
        self._vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self._rendered: Any = None
        self._lock = threading.Lock()

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self._vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer: of tokenizer_config.json, config.json and generation_config.json."""
        return self._eos_token_ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with what the tokenizer puts around every text (a beginning-of-text token, say)."""
        return self._encode(text, specials_are_text=True, frame=True)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of the rendered template. What looks like a special token inside a message is text.

        Raises ValueError when there is no template, or it refuses the conversation.
        """
        if not messages:
            raise ValueError("a conversation needs at least one message")
        hidden: list[str] = []
        rendered = self._render([self._hide(message, hidden) for message in messages])
        ids: list[int] = []
        for number, piece in enumerate(rendered.split(_MARK)):
            if number % 2:
                ids += self._encode(hidden[int(piece)], specials_are_text=True, frame=False)
            elif piece:
                ids += self._encode(piece, specials_are_text=False, frame=False)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _encode(self, text: str, *, specials_are_text: bool, frame: bool) -> list[int]:
        text = text.encode("utf-8", "replace").decode("utf-8")
        with self._lock:  # the switch is the tokenizer's, and threads may share it
            self._tokenizer.encode_special_tokens = specials_are_text
            return list(self._tokenizer.encode(text, add_special_tokens=frame).ids)

    def _hide(self, message: Mapping[str, str], hidden: list[str]) -> dict[str, str]:
        """The message with special tokens' texts replaced by marks around their number in `hidden`."""
        content = message.get("content", "").replace(_MARK, _REPLACEMENT)
        for text in sorted(self._specials, key=len, reverse=True):
            if text and text in content:
                content = content.replace(text, f"{_MARK}{len(hidden)}{_MARK}")
                hidden.append(text)
        return {**message, "content": content}

    def _render(self, messages: list[dict[str, str]]) -> str:
        if self._template is None:
            raise ValueError("this model has no chat template: use completions")
        import jinja2  # noqa: PLC0415 only where a directory needs it
        import jinja2.sandbox  # noqa: PLC0415

        def refuse(message: str) -> None:
            raise ValueError(f"the chat template refuses this conversation: {message}")

        if self._rendered is None:
            environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
            )
            environment.globals["raise_exception"] = refuse
            environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
            try:
                self._rendered = environment.from_string(self._template)
            except jinja2.TemplateError as error:
                raise ValueError(f"the chat template of this model cannot be read: {error}") from error
        tokens = {
            name: _token_text(value)
            for name, value in self._config.items()
            if name.endswith("_token") and value
        }
        try:
            return str(self._rendered.render(messages=messages, add_generation_prompt=True, **tokens))
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses this conversation: {error}") from error


class Detokeniser:
    """Text of one answer as its tokens come: whole characters, held back while they may become a stop string.

    `prior` are tokens of the same answer whose text was already given out as far as it could be (by a replica that
    was lost): they count for stop strings, and only what was held back then comes out.
    """

    __slots__ = ("_end", "_feed", "_held", "_stop", "stop_reason")

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), prior: Sequence[int] = ()) -> None:
        self._feed, self._end = (
            tokenizer.incremental()
            if isinstance(tokenizer, ByteTokenizer)
            else _Window(tokenizer).functions()
        )
        self._stop = tuple(stop)
        self._held = ""
        self.stop_reason: str | None = None
        """The stop string that was found: the answer ends before it."""
        for token_id in prior:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """Text that may be given out after one more token; sets `stop_reason` when the answer is over."""
        text = self._feed(token_id)
        if not self._stop:
            return text
        if self.stop_reason is not None or not text:
            return ""
        text = self._held + text
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, self.stop_reason = min(found, key=lambda pair: pair[0])
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What is still held back, at the end of an answer that no stop string ended; a half character at its end
        becomes U+FFFD. All that was given out is then `decode` of all tokens."""
        held, self._held = self._held + self._end(), ""
        return held


class _Window:
    """Incremental decoding through `decode` of any tokenizer: two windows of the latest tokens are compared, since
    the text of a token depends on those before it."""

    __slots__ = ("_decode", "_ids", "_known", "_start")

    _MAX_PENDING = 8
    """Tokens without a whole character: no character has so many."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        self._ids: list[int] = []
        self._start = 0  # tokens before `_start` of `_ids` have been given out
        self._known = ""

    def functions(self) -> tuple[Callable[[int], str], Callable[[], str]]:
        """(takes token after token and returns the characters that became whole, ends with the rest)."""
        return self._feed, self._fresh

    def _feed(self, token_id: int) -> str:
        self._ids.append(token_id)
        pending = len(self._ids) - self._start
        text = self._decode(self._ids)
        whole = not text.endswith(_REPLACEMENT) and len(text) > len(self._known)
        return self._fresh(text) if whole or pending >= self._MAX_PENDING else ""

    def _fresh(self, text: str | None = None) -> str:
        """All text that is new; the tokens that made it become the context of the next ones."""
        if text is None:
            text = self._decode(self._ids)
        fresh = text[len(self._known) :]
        self._ids = self._ids[self._start :]
        self._start = len(self._ids)
        self._known = self._decode(self._ids)
        return fresh


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _template_text(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or a field of tokenizer_config.json (one, or several by name)."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _token_text(value: object) -> str:
    """A token of tokenizer_config.json: text, or an object with its content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise EngineError(f"{path}: an object is expected, not {type(found).__name__}")
    return found
