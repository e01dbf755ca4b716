"""Upload an exported network to the Hugging Face hub."""

from pathlib import Path

from sda.errors import SdaError


def push(folder: Path, files: list[str], name: str) -> str:
    """Upload files of a folder to a repository, which is created as a private one if it does not exist.

    Args:
        name: OWNER/NAME.

    Returns:
        The address of the repository.

    Raises:
        SdaError: the hub cannot be reached, or does not accept the token of this machine.
    """
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi(library_name="sda")
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=files, commit_message="Upload a network of sda")
    except Exception as error:  # the library also raises the errors of its HTTP client
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SdaError(
            f"cannot upload {folder} to {name} ({reason}); the files are in this folder. To log in: hf auth login; then repeat "
            "the command with --overwrite"
        ) from None
    return str(address)
