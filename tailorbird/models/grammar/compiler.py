"""Compile response formats into grammars over the tokens of a model. All uses of xgrammar are in
this folder."""

import json
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tailorbird.config.formats.json_schema import supported_schema
from tailorbird.config.formats.response_format import (
    ChoiceFormat,
    JsonSchemaFormat,
    StructuredFormat,
    format_key,
)
from tailorbird.models.grammar.text_lengths import with_shared_lengths
from tailorbird.models.grammar.trial_process import TRIALS, Stopped, Unsupported

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# of the grammars that a compiler keeps
MAX_GRAMMARS = 64
MAX_BYTES = 128 << 20
TOO_SLOW = (
    "answers in the format take too long to constrain; simplify its {part}, for example by lower "
    "counts, narrow classes such as [a-z], or alternatives that start with different characters"
)
COSTLY_KEYWORDS = ("pattern", "maxLength", "minLength", "maxItems", "minItems", "anyOf", "enum")
"""Keywords that can make a grammar slow, the likeliest first."""
MAX_WHITESPACE = 8
"""Maximum number of spaces and line breaks between two parts of JSON. Without a limit, a small
model can repeat them to the end of the answer. With indentation by two spaces, four levels of
nesting fit."""
TEXT_CLASSES = (r"[^\"\\\r\n]", r"[^\0-\x1f\"\\\r\n]")
"""Characters of JSON texts in the EBNF of xgrammar, with and without a limit of their length."""
TEXT_CLASS = r"[^\0-\x1f\"\\\ud800-\udfff]"
"""The class that replaces them, of characters that JSON allows without an escape. The first one of
`TEXT_CLASSES` also has control characters, and both have surrogates, whose bytes are decoded as
several characters. It is negated, because xgrammar rejects tokens that it has allowed if another
class is repeated more than 128 times."""
_log = logging.getLogger(__name__)


class FormatError(ValueError):
    """A response format that no grammar expresses, or whose grammar is too slow. Its message is for
    clients."""


@dataclass(eq=False)
class Grammar:
    """A compiled response format. Its matchers can run in several threads."""

    text: str  # in EBNF, for vLLM
    compiled: Any  # xgrammar's `CompiledGrammar`
    end_id: int
    num_bytes: int
    is_version_format: bool = False
    """True for the format of a served version: a fault of one answer does not end others."""
    fault: str | None = None
    """Why no more answers are generated with it. An answer whose next tokens take too long to find
    sets it."""

    def require_usable(self) -> None:
        """Raise FormatError if an earlier answer could not be generated."""
        if self.fault is not None:
            raise FormatError(self.fault)


class GrammarCompiler:
    """Compiles response formats for one model, one at a time, and keeps the grammars that were used
    last."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        vocab_size: int,
        end_id: int,
    ) -> None:
        """Create a compiler for logits of `vocab_size` tokens; they can be more than those of the
        tokenizer."""
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_id = end_id
        self._info: Any = None
        self._tokens = b""
        self._compiling = threading.Lock()
        self._lock = threading.Lock()
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()

    def known(self, format: StructuredFormat) -> Grammar | None:
        """Return the grammar of a format if it is kept, without waiting for another compilation."""
        with self._lock:
            grammar = self._grammars.get(format_key(format))
            if grammar is not None:
                self._grammars.move_to_end(format_key(format))
            return grammar

    def compile(self, format: StructuredFormat, *, keep: bool = True) -> Grammar:
        """Return the grammar of a format. This call blocks, for up to seconds. Raises FormatError.

        Do not `keep` that of a served version, which its engine holds.
        """
        with self._compiling:
            known = self.known(format)
            if known is not None:
                return known
            import xgrammar

            text = str(grammar_of(format))
            serialized = self._tried(format, grammar=text)
            compiled = xgrammar.CompiledGrammar.deserialize_json(serialized, self._info)
            grammar = Grammar(
                text=text,
                compiled=compiled,
                end_id=self._end_id,
                num_bytes=int(compiled.memory_size_bytes),
                is_version_format=not keep,
            )
        if not keep:
            return grammar
        with self._lock:
            self._grammars[format_key(format)] = grammar
            while len(self._grammars) > MAX_GRAMMARS or self.num_bytes > MAX_BYTES:
                self._grammars.popitem(last=False)
        return grammar

    def _tried(self, format: StructuredFormat, *, grammar: str) -> str:
        """Compile and try a grammar in a child process; return it serialized."""
        if self._info is None:
            self._info = token_info(
                self.tokenizer, vocab_size=self._vocab_size, end_id=self._end_id
            )
            self._tokens = self._info.serialize_json().encode()
        try:
            return TRIALS.compiled(tokens=self._tokens, grammar=grammar)
        except Stopped:
            raise too_slow(format) from None
        except Unsupported as error:
            raise _unsupported(str(error)) from None

    @property
    def num_bytes(self) -> int:
        """The size of the grammars that are kept."""
        return sum(grammar.num_bytes for grammar in self._grammars.values())


# by language model, for `grammar_for`
_COMPILERS: WeakKeyDictionary[Any, GrammarCompiler] = WeakKeyDictionary()


def grammar_for(
    format: StructuredFormat | None, *, lm: Any, tokenizer: "PreTrainedTokenizerBase"
) -> Grammar | None:
    """Return the grammar of a format for a language model; None for any text. Raises FormatError.

    It is compiled once per model. A fault of earlier answers is not in it.
    """
    if format is None:
        return None
    compiler = _COMPILERS.get(lm)
    if compiler is None or compiler.tokenizer is not tokenizer:
        compiler = _COMPILERS[lm] = compiler_for(lm, tokenizer=tokenizer)
    return replace(compiler.compile(format), fault=None)


def compiler_for(lm: Any, *, tokenizer: "PreTrainedTokenizerBase") -> GrammarCompiler:
    """Return a compiler for a language model."""
    end_id: Any = tokenizer.eos_token_id
    return GrammarCompiler(
        tokenizer, vocab_size=lm.config.get_text_config().vocab_size, end_id=end_id
    )


def grammar_of(format: StructuredFormat) -> Any:
    """Return xgrammar's `Grammar` of a format, whose text is its EBNF. Raises FormatError if there
    is none."""
    import xgrammar

    if isinstance(format, ChoiceFormat):
        return xgrammar.Grammar.from_ebnf("root ::= " + " | ".join(map(_literal, format.choice)))
    schema: dict[str, Any] = {"type": "object", "additionalProperties": True}
    if isinstance(format, JsonSchemaFormat):
        schema = supported_schema(format.json_schema.content)
    try:
        grammar = xgrammar.Grammar.from_json_schema(
            schema, any_whitespace=True, max_whitespace_cnt=MAX_WHITESPACE, strict_mode=True
        )
        text = str(grammar)
        for text_class in TEXT_CLASSES:
            text = text.replace(text_class, TEXT_CLASS)
        return xgrammar.Grammar.from_ebnf(with_shared_lengths(text, char=TEXT_CLASS))
    except (RuntimeError, ValueError) as error:
        raise _unsupported(str(error)) from None


def token_info(tokenizer: "PreTrainedTokenizerBase", *, vocab_size: int, end_id: int) -> Any:
    """Return xgrammar's `TokenizerInfo`. Special tokens have no text in the answer, so they are not
    used."""
    import xgrammar

    detected = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=vocab_size, stop_token_ids=[end_id]
    )
    texts = list(detected.decoded_vocab)
    for token, added in tokenizer.added_tokens_decoder.items():
        if token < vocab_size:
            texts[token] = b"" if added.special else added.content.encode()
    texts[end_id] = b""
    return xgrammar.TokenizerInfo(
        texts, xgrammar.VocabType.RAW, vocab_size=vocab_size, stop_token_ids=[end_id],
        add_prefix_space=detected.add_prefix_space,
    )  # fmt: skip


def _literal(text: str) -> str:
    """Return a text as a literal of EBNF."""
    return '"' + "".join(char if char.isalnum() else f"\\U{ord(char):08x}" for char in text) + '"'


def too_slow(format: StructuredFormat) -> FormatError:
    """Return an error that names the keyword that most likely makes a grammar slow."""
    text = json.dumps(format.model_dump(mode="json"))
    names = (f"`{name}`" for name in COSTLY_KEYWORDS if f'"{name}"' in text)
    return FormatError(TOO_SLOW.format(part=next(names, "schema")))


def _unsupported(message: str) -> FormatError:
    """Return an error without the message of xgrammar, which can be empty or have the library's
    paths."""
    _log.warning("xgrammar cannot compile a response format: %s", message[:300])
    return FormatError(
        "the format is not supported: no grammar can be compiled for it; use a simpler schema"
    )
