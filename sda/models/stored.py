"""Read files of tensors, .pt and .safetensors, so that neither damage nor a crafted file gives other tensors or runs code."""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sda.errors import SdaError

SHA256 = "sha256"  # key of the hash, in a checkpoint and in the metadata of a .safetensors file
_METADATA = {"sda", "format"}  # the metadata of files without a hash, which older versions of sda and other programs wrote


def digest(value: object) -> str:
    """Return the SHA-256 of nested dicts, lists and tuples of tensors and plain values: names, types, shapes and bytes.

    Two values have the same hash if they are equal to the last bit and their dicts have the same order.
    """
    sha = hashlib.sha256()

    def add(part: object) -> None:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype} {tuple(part.shape)}:".encode())
            sha.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(part, Mapping):
            sha.update(f"dict {len(part)}:".encode())
            for key, held in part.items():
                add(key)
                add(held)
        elif isinstance(part, list | tuple):
            sha.update(f"{type(part).__name__} {len(part)}:".encode())
            for held in part:
                add(held)
        else:
            text = repr(part).encode(errors="surrogatepass")
            sha.update(f"{type(part).__name__} {len(text)}:".encode() + text)

    add(value)
    return sha.hexdigest()


def read_pt(path: Path, old: bool = False) -> object:
    """Load what `torch.save` wrote, to the CPU, after comparing all checksums. Never runs code from the file.

    Args:
        old: also load the format of PyTorch before 1.6, which has no checksums.

    Raises:
        ValueError: the file is truncated, damaged, of another kind, or contains other objects than tensors and plain values.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04" or not old:  # as PyTorch tells the formats apart
            _check_archive(file)
        file.seek(0)
        try:
            with warnings.catch_warnings(action="ignore"):
                content = torch.load(file, map_location="cpu", weights_only=True)
            if isinstance(content, dict) and SHA256 in content and content.pop(SHA256) != digest(content):
                raise ValueError("damaged: its SHA-256 is wrong")
        except Exception as error:  # a crafted file can fail anywhere in the code that reads zip files, pickles and tensors
            raise ValueError(_reason(error)) from None
    return content


def _check_archive(file: BinaryIO) -> None:
    """Compare the checksums of a .pt file, which is a zip archive. PyTorch does not."""
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                # PyTorch writes neither. The size of a compressed entry would have no bound; a folder reads as random memory.
                if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr:
                    raise ValueError(f"damaged: {entry.filename} is not stored as PyTorch stores it")
            if broken := archive.testzip():
                raise ValueError(f"damaged: the checksum of {broken} is wrong")
    except Exception as error:  # zipfile raises many kinds
        raise ValueError(_reason(error)) from None


def write_safetensors(tensors: Mapping[str, Tensor], about: str) -> bytes:
    """Return the content of a .safetensors file, with the text `about` as "sda" in its metadata, and the hash of both.

    Equal values give equal bytes.
    """
    tensors = {name: tensors[name].contiguous() for name in sorted(tensors)}
    content = safetensors.torch.save(tensors, metadata={"sda": about, SHA256: digest([about, tensors])})
    # The package writes the metadata in random order. The file begins with the size of the header, and the header, as JSON.
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[start:]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of a .safetensors file, and the text "sda" in its metadata. Files without a hash are accepted.

    Raises:
        ValueError: the file is truncated, damaged or of another kind. OSError: it cannot be read.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        about, expected = metadata.get("sda"), metadata.get(SHA256)
        if about is not None and expected is None and not metadata.keys() <= _METADATA:
            raise ValueError("damaged: its metadata has no SHA-256")
        if expected is not None and expected != digest([about, tensors]):
            raise ValueError("damaged: its SHA-256 is wrong")
    except OSError:
        raise
    except Exception as error:
        raise ValueError(_reason(error)) from None
    return tensors, about


def _reason(error: Exception) -> str:
    """Return the first sentence of an error's message, without PyTorch's advice."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise SdaError if a tensor is not plain numbers on the CPU, or one of its values is NaN or infinite."""
    for name, value in tensors.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        # A crafted tensor of stride 0 claims any size.
        if not plain or value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise SdaError(f"{where}: {name} is not a plain tensor")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise SdaError(f"{where}: {name} has values that are NaN or infinite: the training diverged, or the file is damaged")


def fit(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a complete state dict into a module. PyTorch alone would also cast other types.

    Raises:
        SdaError: a tensor is missing, unknown, or of another shape or type; the message starts with `where`.
    """
    own = module.state_dict()
    for name in own.keys() | tensors.keys():
        if name not in tensors or name not in own:
            names = sorted(own.keys() ^ tensors.keys())
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise SdaError(f"{where}: {'missing' if names[0] in own else 'unknown'} {names[0]}{more}")
    for name, value in tensors.items():
        found, wanted = ((tuple(each.shape), str(each.dtype).removeprefix("torch.")) for each in (value, own[name]))
        if found != wanted:
            raise SdaError(f"{where}: {name} has shape {found[0]} and type {found[1]}, expected {wanted[0]} and {wanted[1]}")
    module.load_state_dict(dict(tensors))
