"""Where a checkpoint lies inside a Hugging Face hub cache."""

from pathlib import Path

from nibble_import.folder import ImportRefused


def checkpoint_folder(source):
    """The folder itself, or the snapshot of a cache folder models--ORGANISATION--NAME."""
    source = Path(source)
    if not source.is_dir():
        raise ImportRefused(f"{source}: not found, expected a folder")
    snapshots = source / "snapshots"
    if not snapshots.is_dir():
        return source
    main = source / "refs" / "main"
    if main.is_file():
        snapshot = snapshots / main.read_text(encoding="utf-8").strip()
        if snapshot.parent != snapshots or not snapshot.is_dir():
            raise ImportRefused(f"{main}: no snapshot {snapshot.name}, expected one in the cache")
        return snapshot
    found = sorted(folder for folder in snapshots.iterdir() if folder.is_dir())
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise ImportRefused(f"{snapshots}: found {names}, expected refs/main or one snapshot; "
                            "name the snapshot's folder")
    return found[0]
