"""Download pretrained weights, or find them in the caches of earlier downloads."""

import hashlib
import os
import socket
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch

from sda.errors import SdaError

FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository on the Hugging Face hub


@dataclass(frozen=True)
class Published:
    """Where the default weights of an encoder of timm are published: in a repository of the Hugging Face hub, or at a URL.

    Neither: they are not published.
    """

    repository: str = ""
    names: tuple[str, ...] = FILES
    url: str = ""

    @classmethod
    def of(cls, cfg: dict) -> "Published":
        """Return where timm's description of the weights says."""
        if repository := cfg.get("hf_hub_id"):
            return cls(repository, (cfg["hf_hub_filename"],) if cfg.get("hf_hub_filename") else FILES)
        return cls(url="" if cfg.get("custom_load") else cfg.get("url") or "")

    def __bool__(self) -> bool:
        return bool(self.repository or self.url)

    def __str__(self) -> str:
        return f"a file of https://huggingface.co/{self.repository}" if self.repository else self.url

    @property
    def cached(self) -> bool:
        """Whether an earlier download left the file on this machine."""
        if self.repository:
            return in_hub_cache(self.repository, self.names) is not None
        return bool(self.url) and in_torch_cache(self.url).is_file()

    def fetch(self) -> Path:
        """Return the file, from the caches of earlier downloads or by download. Raise SdaError if the download fails."""
        return hugging_face(self.repository, self.names) if self.repository else torch_hub(self.url)


def torch_hub(url: str) -> Path:
    """Return a file that PyTorch's hub has, from its cache or by download, after comparing its hash with the one in its name.

    Raises:
        SdaError: the download failed, or the file in the cache is damaged.
    """
    file = in_torch_cache(url)
    name, expected = file.name, torch.hub.HASH_REGEX.search(file.name)
    if file.is_file():
        if expected:
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if not found.startswith(expected.group(1)):
                raise SdaError(f"{file}: damaged: its SHA-256 is wrong; remove this file, and it is downloaded again")
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), expected.group(1) if expected else None, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no disk; or a damaged download, which fails its checksum
        raise SdaError(f"cannot download {url} ({error})") from error
    assert file.name == name
    return file


def in_torch_cache(url: str) -> Path:
    """Return where PyTorch's hub keeps a file."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(url).name)


def in_hub_cache(repository: str, names: tuple[str, ...] = FILES) -> Path | None:
    """Return a file of a repository that an earlier download from the Hugging Face hub left; None if there is none."""
    import huggingface_hub  # half a second

    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def hugging_face(repository: str, names: tuple[str, ...] = FILES) -> Path:
    """Return a file of a repository on the Hugging Face hub, from the local cache or by download.

    Args:
        names: the file's name, and others to look for if there is no such file.

    Raises:
        SdaError: the download failed; the message says why.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if cached := in_hub_cache(repository, names):
        return cached
    where = f"cannot download {names[0]} of {huggingface_hub.constants.ENDPOINT}/{repository}"
    if reason := _unreachable(huggingface_hub.constants.ENDPOINT):
        raise SdaError(f"{where} ({reason})")
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name))
        except Exception as error:  # the library also raises the errors of its HTTP client
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            raise SdaError(f"{where} ({(str(error).splitlines() or [type(error).__name__])[0]})") from None
    raise SdaError(f"{where}: the repository has none of {', '.join(names)}")


def is_on_hub(run: str | Path) -> bool:
    """Return whether a run is named as a network on the Hugging Face hub: hf://OWNER/NAME, or the same after `Path`."""
    return str(run).startswith("hf:/")


def fetch(run: str | Path) -> Path:
    """Download an exported network from the Hugging Face hub into runs/OWNER--NAME, unless it is there.

    Args:
        run: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION.

    Returns:
        The folder.

    Raises:
        SdaError: the download failed, or the repository has no network of sda.
    """
    import huggingface_hub

    name, _, revision = str(run).removeprefix("hf:").strip("/").partition("@")
    folder = Path("runs", str(run).removeprefix("hf:").strip("/").replace("/", "--"))
    if (folder / FILES[0]).is_file():
        return folder
    endpoint = huggingface_hub.constants.ENDPOINT
    if reason := _unreachable(endpoint):
        raise SdaError(f"hf://{name}: cannot download {endpoint}/{name} ({reason}); download it elsewhere and give the folder")
    try:
        huggingface_hub.snapshot_download(name, revision=revision or None, local_dir=folder, allow_patterns=[FILES[0], "*.md"])
    except Exception as error:  # the library also raises the errors of its HTTP client
        raise SdaError(f"hf://{name}: cannot download it ({(str(error).splitlines() or [type(error).__name__])[0]})") from None
    if not (folder / FILES[0]).is_file():
        raise SdaError(f"hf://{name}: has no {FILES[0]}: not a network that sda export --as hub wrote")
    return folder


def _unreachable(url: str) -> str:
    """Return why a server cannot be reached, or "". The hub's library would try for half a minute."""
    parts = urlsplit(url)
    if urllib.request.getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return ""  # a proxy may reach it; and the library itself says that it is offline
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=10).close()
    except OSError as error:
        return f"{parts.hostname}: {error.strerror or error}"
    return ""
