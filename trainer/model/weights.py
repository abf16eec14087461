"""The weights of a model folder: which files, which names, which shapes; read without running pickled code.

Names and shapes are compared with config.json before anything is allocated for them, so that neither file can ask for
more memory than the other one fills.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from trainer.engine.config import InputError
from trainer.model.configuration import read_config, stored_family
from trainer.model.heads import MaskedLanguageModel
from trainer.model.json_files import read_json
from trainer.model.longformer import EncoderConfig

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
DECODER = ("lm_head.decoder.weight", "lm_head.decoder.bias")
GLOBAL_PROJECTIONS = ("query", "key", "value")
Found = TypeVar("Found")
_FILES = ("model.safetensors", "pytorch_model.bin")
# Hugging Face's names of any family to ours, which are RoBERTa's without the prefix.
_RENAMED = (
    (re.compile(r"^(?:roberta|longformer|bert)\."), ""),
    (re.compile(r"^cls\.predictions\.transform\.LayerNorm\."), "lm_head.layer_norm."),
    (re.compile(r"^cls\.predictions\.(?:transform\.)?"), "lm_head."),
    (re.compile(r"\.gamma$"), ".weight"),  # LayerNorm in files converted from TensorFlow
    (re.compile(r"\.beta$"), ".bias"),
)
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


@dataclass
class StoredModel:
    """A folder's model by our names, whatever family it is of.

    `left_out` names what the file holds beside encoder and masked-language-model head: other heads.
    """

    family: str
    config: EncoderConfig
    tensors: dict[str, Tensor]
    left_out: list[str]

    @property
    def has_head(self) -> bool:
        return "lm_head.bias" in self.tensors


def read_model(folder: Path) -> StoredModel:
    """The model in a folder, every tensor there in its shape; InputError lists all that is not.

    A BERT's position table comes with rows of zeros for the padding index and those before it, where RoBERTa has them.
    """
    config, family = read_config(folder), stored_family(folder)
    rows_before = config.pad_token_id + 1 if family == "bert" else 0
    files = weight_files(folder)
    # safetensors tell shapes from their header; a pickle has to be loaded, which takes what its file takes.
    pickled = files[0].suffix != ".safetensors"
    stored = _unpickle(files) if pickled else {}
    shapes = {name: tuple(t.shape) for name, t in stored.items()} if pickled else read_shapes(files)
    placed, left_out = place(shapes, folder)
    check_shapes({name: shapes[theirs] for name, theirs in placed.items()}, config, folder, rows_before)
    if not pickled:
        stored = read_tensors(files)
    tensors = {name: stored[theirs] for name, theirs in placed.items()}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{folder}: {placed[name]}: found {tensor.dtype}, expected floating point")
    _drop_tied_copies(tensors, folder)
    if rows_before:
        table = tensors[POSITIONS]
        tensors[POSITIONS] = torch.cat([table.new_zeros(rows_before, table.shape[1]), table])
    return StoredModel(family, config, tensors, left_out)


def read_left_out(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors that `read_model` has left out, by the names of the file, as float32."""
    wanted, files = set(names), weight_files(folder)
    if files[0].suffix == ".safetensors":
        found = _each(files, lambda file, name: file.get_tensor(name) if name in wanted else None)
    else:
        found = {name: tensor for name, tensor in _unpickle(files).items() if name in wanted}
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in found.items() if tensor is not None}


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, all of them there."""
    for name in _FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _listed(index, Path(name).suffix)
    hint = (
        " (a checkpoint: trainer.export makes a model of it)"
        if (folder / "weights.safetensors").is_file()
        else ""
    )
    raise InputError(f"{folder}: found no {' and no '.join(_FILES)}{hint}")


def _listed(index: Path, suffix: str) -> list[Path]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise InputError(
            f"{index}: weight_map: found {type(placed).__name__}, expected names and their files"
        )
    names = sorted({str(name) for name in placed.values()})
    for name in names:
        if not name.endswith(suffix) or Path(name).name != name:
            raise InputError(
                f"{index}: weight_map: found {name!r}, expected {suffix} files of its own folder"
            )
        if not (index.parent / name).is_file():
            raise InputError(f"{index.parent / name}: not there, though {index} lists it")
    return [index.parent / name for name in names]


def _each(files: list[Path], read: Callable[[Any, str], Found]) -> dict[str, Found]:
    """What `read` gives for each tensor of some safetensors files, by its name there."""
    found: dict[str, Found] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                found |= {name: read(opened, name) for name in opened.keys()}  # noqa: SIM118, it is no dict
        except Exception as error:  # safetensors raises its own and OSErrors; all mean the file is unusable
            raise InputError(f"{file}: not a readable safetensors file ({error})") from error
    return found


def read_shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a folder, by the names of its files."""
    files = weight_files(folder)
    if files[0].suffix == ".safetensors":
        return read_shapes(files)
    return {name: tuple(tensor.shape) for name, tensor in _unpickle(files).items()}


def read_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of safetensors files, from their headers: nothing of a tensor is read."""
    return _each(files, lambda file, name: tuple(file.get_slice(name).get_shape()))


def read_tensors(files: list[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files, by their names there."""
    return _each(files, lambda file, name: file.get_tensor(name))


def _unpickle(files: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # the restricted unpickler has no common base class for its refusals
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{file}: not loadable as plain weights ({reason})") from error
        if not isinstance(found, Mapping):
            raise InputError(f"{file}: found a {type(found).__name__}, expected tensors by name")
        for name, tensor in found.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise InputError(f"{file}: {name!r}: found a {type(tensor).__name__}, expected a tensor")
            # One stored number can be given out as a tensor of any size; copying it would fill the memory.
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise InputError(f"{file}: {name}: a tensor of shape {list(tensor.shape)} that is not stored")
        tensors |= found
    return tensors


def place(names: Iterable[str], source: Path) -> tuple[dict[str, str], list[str]]:
    """The file's name of each tensor by ours, and the names of what is no part of encoder, pooler or head."""
    placed: dict[str, str] = {}
    left_out = []
    for name in names:
        ours = name
        for pattern, replacement in _RENAMED:
            ours = pattern.sub(replacement, ours)
        if ours in _BUFFERS:
            continue
        if not ours.startswith(("embeddings.", "encoder.", "pooler.", "lm_head.")):
            left_out.append(name)
        elif ours in placed:
            raise InputError(f"{source}: found both {placed[ours]} and {name}, expected one of them")
        else:
            placed[ours] = name
    # Of tied tensors a file may hold either.
    for tied, decoder in zip((WORDS, "lm_head.bias"), DECODER, strict=True):
        if tied not in placed and decoder in placed:
            placed[tied] = placed.pop(decoder)
    return placed, left_out


def _expected_shapes(config: EncoderConfig, head: bool) -> dict[str, tuple[int, ...]]:
    """Shapes by our names of what a model of these sizes has, as the model itself says; nothing is allocated."""
    with torch.device("meta"):
        model = MaskedLanguageModel(config)
    return {
        name: tuple(parameter.shape)
        for name, parameter in without_prefix(dict(model.named_parameters())).items()
        if head or not name.startswith("lm_head.")
    }


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], config: EncoderConfig, folder: Path, rows_before: int = 0
) -> None:
    """Compare the shapes of a file, by our names, with what config.json promises; InputError lists the misfits."""
    layers = len({m[1] for name in shapes if (m := re.match(r"encoder\.layer\.(\d+)\.", name))})
    if layers != config.num_hidden_layers:
        raise InputError(
            f"{folder}: the weights have {layers} layers, expected num_hidden_layers {config.num_hidden_layers}"
        )
    expected = _expected_shapes(config, head=any(name.startswith("lm_head.") for name in shapes))
    rows, width = expected[POSITIONS]
    expected[POSITIONS] = (rows - rows_before, width)
    wrong = [f"{name}: not there" for name in expected if name not in shapes]
    # What a file may hold as well; a decoder is compared with what it is tied to.
    allowed = expected | {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    if config.architecture == "longformer":
        allowed |= {
            _global(name, part): shape for name, shape in expected.items() for part in GLOBAL_PROJECTIONS
        }
    for name, shape in shapes.items():
        known = allowed.get(name)
        if known is not None and shape != known:
            wrong.append(f"{name}: found {list(shape)}, expected {list(known)}")
        if known is None and name not in DECODER:
            wrong.append(f"{name}: found, and a {config.architecture} has no such weights")
    refuse_misfits(folder, wrong)


def _drop_tied_copies(tensors: dict[str, Tensor], folder: Path) -> None:
    """Remove the decoder, which is the word embeddings and the head's bias again; InputError where it is not."""
    for tied, decoder in zip((WORDS, "lm_head.bias"), DECODER, strict=True):
        copy = tensors.pop(decoder, None)
        if copy is not None and not torch.equal(copy, tensors[tied]):
            raise InputError(
                f"{folder}: {decoder} is not {tied}, expected them to be tied: "
                "Longformer's decoder has no weights of its own"
            )


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash over names and values, the same wherever the tensors lie and in whatever order they come."""

    def digest(name: str) -> bytes:
        values = tensors[name].detach().cpu().contiguous().flatten()
        hashed = hashlib.sha256(f"{name}\0{values.dtype}\0".encode())
        hashed.update(values.view(torch.uint8).numpy().data)
        return hashed.digest()

    with ThreadPoolExecutor(4) as pool:  # hashing leaves the interpreter to others
        return hashlib.sha256(b"".join(pool.map(digest, sorted(tensors)))).hexdigest()[:32]


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one of our own models by names without `roberta.` or `longformer.`."""
    return {re.sub(r"^(roberta|longformer)\.", "", name): tensor for name, tensor in tensors.items()}


def without_global_projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "_global." not in name}


def with_global_projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add `*_global` as copies of query, key and value: masked-language modelling does not train them."""
    added = {
        _global(name, part): tensor.clone()
        for name, tensor in tensors.items()
        for part in GLOBAL_PROJECTIONS
        if f".self.{part}." in name
    }
    return {**tensors, **added}


def _global(name: str, part: str) -> str:
    """The name of a global projection from that of its local one; of other tensors their own."""
    return name.replace(f".self.{part}.", f".self.{part}_global.")


def refuse_misfits(folder: Path, wrong: list[str]) -> None:
    """InputError with the first ten of what is wrong with a folder's tensors, if anything is."""
    if wrong:
        more = [f"... and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        raise InputError(
            f"{folder}: the weights do not fit config.json:\n  " + "\n  ".join(wrong[:10] + more)
        )
