"""Write a version to a local folder that other libraries load, with its model card."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cluster.progress import current_progress
from tailorbird import storage
from tailorbird.config.formats.response_format import ChoiceFormat, StructuredFormat
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.evidence_files import MANIFEST, read_evidence
from tailorbird.evaluation.report.model_card import to_model_card
from tailorbird.models.hub_format import (
    BASE,
    GRAMMAR,
    PROMPTING,
    RESPONSE_FORMAT,
    Library,
    require_exportable,
    write_hub_format,
)
from tailorbird.registry.versions import ModelVersion, read_version
from tailorbird.storage.node_cache import is_license_file

CARD = "README.md"
HUB = "hf://"
FORMAT_IMPORTS = "import xgrammar\nfrom xgrammar.contrib.hf import LogitsProcessor\n"
FORMAT_CODE = (
    "vocab_size = model.config.get_text_config().vocab_size\n"
    "tokens = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)\n"
    f'grammar = xgrammar.GrammarCompiler(tokens).compile_grammar(open("FOLDER/{GRAMMAR}").read())\n'
)
WITHOUT_BAG = (
    "The evaluated version adds the logits of a bag of words, which is not in this folder. The "
    "scores and the verdict in the card are not those of the model in this folder."
)


@dataclass(frozen=True)
class ExportedVersion:
    """A folder with a version, the library that loads it, and the paths of its files."""

    library: Library
    files: tuple[str, ...]
    notes: tuple[str, ...]
    """Sentences to read before the folder is published; they are also in the card."""
    contains_training_text: bool


def export_version(
    uri: str, folder: Path, *, merged: bool = False, encoder_only: bool = False
) -> ExportedVersion:
    """Write the version at `uri` to a new local folder, completely or not at all; see
    `write_hub_format`.

    Raises ValueError if the folder exists and is not empty, or cannot be written, and the errors of
    `read_version` and `write_hub_format`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists; give a new folder with --to")
    version = read_version(uri)
    require_exportable(version, encoder_only=encoder_only)
    evidence = None
    source = version.base_model
    if storage.exists(f"{uri}/{MANIFEST}"):
        evidence = read_evidence(uri)
        source = evidence.versions[evidence.role_of(uri)].base_model or source
    hub_base = None
    if source.startswith(HUB):
        hub_base = source.removeprefix(HUB)
    current_progress().activity(f"downloading and writing {version.version}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(
            f"{folder}: {error.strerror or error}; give a writable folder with --to"
        ) from None
    try:
        library = write_hub_format(
            version, temporary, merged=merged, encoder_only=encoder_only, hub_base=hub_base
        )
        notes = _notes(version, folder=temporary)
        card = card_text(version, evidence, library=library, hub_base=hub_base, notes=notes)
        (temporary / CARD).write_text(card, encoding="utf-8")
        paths = [path for path in temporary.rglob("*") if path.is_file()]
        files = tuple(sorted(path.relative_to(temporary).as_posix() for path in paths))
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExportedVersion(
        library=library,
        files=files,
        notes=(*_differences(version), *notes),
        contains_training_text=bool(version.prompting and version.prompting.shots),
    )


def card_text(
    version: ModelVersion,
    evidence: Evidence | None,
    *,
    library: Library,
    hub_base: str | None,
    notes: tuple[str, ...],
) -> str:
    """Return the model card of an exported version: that of its evidence, the notes, and how to
    load the folder."""
    differences = _differences(version)
    if evidence is None:
        card = (
            f"---\nlibrary_name: {library}\n---\n\n# {version.name}: {version.kind}\n\n"
            f"{version.uri} has no evidence.\n"
        )
        card += "".join(f"\n{difference}\n" for difference in differences)
    else:
        role = evidence.role_of(version.uri)
        difference = " ".join(differences) or None
        card = to_model_card(evidence, role=role, library=library, difference=difference)
    if notes:
        card += "\n## Before you publish this folder\n\n" + "".join(f"- {note}\n" for note in notes)
    return f"{card}\n## Load this folder\n\n{_usage(version, library=library, hub_base=hub_base)}"


def _differences(version: ModelVersion) -> tuple[str, ...]:
    """Return how the exported model differs from the evaluated version, at most one sentence."""
    if version.spec.has_bag:  # exported with `encoder_only`
        return (WITHOUT_BAG,)
    return ()


def _notes(version: ModelVersion, *, folder: Path) -> tuple[str, ...]:
    notes = []
    if version.prompting is not None and (shots := version.prompting.shots):
        notes.append(
            f"{PROMPTING} contains training rows as text ({len(shots)} messages). Protect and "
            "delete this folder like the training rows."
        )
    if not any(is_license_file(path.name) for path in folder.iterdir()):
        notes.append(
            "No license file of the base model was staged. Read the license where the base model "
            "is published."
        )
    return tuple(notes)


def _usage(version: ModelVersion, *, library: Library, hub_base: str | None) -> str:
    if library == "sentence-transformers":
        classes = "the classes are `model[0].auto_model.config.id2label`"
        return (
            "The modules are the encoder, the pooling of its hidden states, and the linear head. The prompt of the "
            "encoder, if any, is the default prompt. The output is the logits with the version's offsets and "
            f"temperature, so their softmax is the calibrated confidence; {classes}.\n\n"
            "```python\n"
            "from sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer("FOLDER")\n'
            'logits = model.encode(["a text"])\n'
            f"labels = [model[0].auto_model.config.id2label[index] for index in logits.argmax(1)]\n"
            "```\n"
        )
    return _chat_usage(version, library=library, hub_base=hub_base)


def _chat_usage(version: ModelVersion, *, library: Library, hub_base: str | None) -> str:
    dtype = f"dtype=torch.{version.dtype}"
    imports = "import json\n\nimport torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
    load = f'model = AutoModelForCausalLM.from_pretrained("FOLDER", {dtype})\n'
    if library == "peft":
        base = f'"FOLDER/{BASE}"'
        if hub_base:
            name, _, revision = hub_base.partition("@")
            base = f'"{name}"'
            if revision:
                base += f', revision="{revision}"'
        imports += "from peft import PeftModel\nfrom transformers import GenerationConfig\n"
        load = f"base = AutoModelForCausalLM.from_pretrained({base}, {dtype})\n"
        load += 'base.generation_config = GenerationConfig.from_pretrained("FOLDER")\n'
        load += 'model = PeftModel.from_pretrained(base, "FOLDER")\n'
    grammar = constrained = note = ""
    if version.prompting is not None and version.prompting.response_format is not None:
        imports += FORMAT_IMPORTS
        grammar = FORMAT_CODE
        constrained = ", logits_processor=[LogitsProcessor(grammar)]"
        note = _format_note(version.prompting.response_format)
    return (
        f"```python\n{imports}\n"
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n{load}'
        f'prompting = json.load(open("FOLDER/{PROMPTING}"))\n'
        'messages = prompting["messages"] + [{"role": "user", "content": "a question"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        f"{grammar}"
        "output = model.generate(\n"
        f'    **inputs, max_new_tokens=prompting["max_new_tokens"], do_sample=False{constrained}\n)\n'
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n```\n\n'
        f"`{PROMPTING}` has the messages that the evaluation put before each conversation. Its system message is for "
        f"conversations without their own one.\n{note}"
    )


def _format_note(format: StructuredFormat) -> str:
    """Return what the files of a response format are, and how servers receive them."""
    if isinstance(format, ChoiceFormat):
        field = ""
    else:
        field = f", the `response_format` of OpenAI's API (`{RESPONSE_FORMAT}`)"
    return (
        f"\nThe evaluated answers were constrained to the response format `{format.type}`{field}. Without it, answers "
        f"can differ and be invalid. `{GRAMMAR}` is its grammar. Requests to vLLM have it as "
        '`"structured_outputs": {"grammar": "..."}`. The evaluation also excluded special tokens within answers.\n'
    )
